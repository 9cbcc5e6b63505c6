"use strict";

const part = (id) => document.getElementById(id);

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function row(cells) {
  const made = document.createElement("tr");
  made.append(...cells.map((cell) => element("td", cell)));
  return made;
}

function range({ minimum, maximum, default: standard }) {
  const bounds = minimum === undefined ? "" : ` (${minimum} to ${maximum}, else ${standard})`;
  return bounds;
}

function shapeOf({ content = {} }) {
  const [kind, { schema = {} }] = Object.entries(content)[0] || ["", {}];
  return [kind, (schema.$ref || "").split("/").pop()].filter(Boolean).join(", ");
}

function route(path, method, told) {
  const section = document.createElement("section");
  section.append(element("h3", `${method.toUpperCase()} ${path}`), element("p", told.description || ""));
  const table = document.createElement("table");
  for (const { name, schema, description } of told.parameters || []) {
    table.append(row([`?${name}=`, `${description || ""}${range(schema)}`]));
  }
  for (const [kind, { schema }] of Object.entries((told.requestBody || {}).content || {})) {
    table.append(row(["body", `${kind}, fields: ${Object.keys(schema.properties).join(", ")}`]));
  }
  for (const [status, answer] of Object.entries(told.responses)) {
    table.append(row([status, [answer.description, shapeOf(answer)].filter(Boolean).join(" ")]));
  }
  section.append(table);
  return section;
}

async function describe() {
  part("origin").textContent = location.origin;
  try {
    const told = await (await fetch("openapi.json")).json();
    part("about").textContent = told.info.description;
    for (const [path, methods] of Object.entries(told.paths)) {
      part("routes").append(...Object.entries(methods).map(([method, one]) => route(path, method, one)));
    }
  } catch {
    part("problem").textContent = "The description cannot be read from the server.";
  }
}

describe();
