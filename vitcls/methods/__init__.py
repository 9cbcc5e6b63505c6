"""`python -m vitcls methods`: what each way of training does, tried on small networks."""
