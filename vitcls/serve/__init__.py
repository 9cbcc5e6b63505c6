"""An HTTP server that classifies images, and a page to try it."""
