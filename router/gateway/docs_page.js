"use strict";
// Shows openapi.json. Everything is put on the page as text, never as HTML.

const $ = (id) => document.getElementById(id);
const METHODS = ["get", "post", "put", "patch", "delete"];
let spec = {};

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") for (const [event, run] of Object.entries(value)) element.addEventListener(event, run);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

// Texts: paragraphs, lists, `code` and addresses.

function inline(text) {
  return text.split(/(`[^`]+`)/).map((part) =>
    part.length > 2 && part[0] === "`" ? make("code", {}, part.slice(1, -1)) : part);
}

function prose(text) {
  return (text || "").split(/\n{2,}/).filter(Boolean).map((block) => {
    const lines = block.split("\n");
    if (lines.every((line) => line.startsWith("- ")))
      return make("ul", {}, lines.map((line) => make("li", {}, inline(line.slice(2)))));
    return make("p", {}, inline(lines.join(" ")));
  });
}

// Schemas

function resolve(value) {
  const path = value && value.$ref;
  return path ? path.slice(2).split("/").reduce((at, name) => at[name], spec) : value;
}

const refName = (schema) => (schema.$ref || "").split("/").pop();
const isNull = (schema) => schema.type === "null";

function typeOf(schema) {
  if (schema.$ref) return refName(schema);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  const either = schema.anyOf || schema.oneOf;
  if (either) {
    const found = either.map((one) => one.title || typeOf(one));
    return [...new Set(found)].join(" | ");
  }
  if (schema.type === "array") {
    const inner = schema.items ? typeOf(schema.items) : "any";
    return inner.includes(" ") ? `(${inner})[]` : `${inner}[]`;
  }
  if (schema.title && schema.type === "object") return schema.title;
  if (schema.type === "object" && schema.additionalProperties && schema.additionalProperties !== true)
    return `object of ${typeOf(schema.additionalProperties)}`;
  return Array.isArray(schema.type) ? schema.type.join(" | ") : schema.type || "any";
}

const LIMITS = [
  ["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"], ["minLength", "length ≥"],
  ["maxLength", "length ≤"], ["minItems", "items ≥"], ["maxItems", "items ≤"], ["pattern", "matches"],
];

function limitsOf(schema) {
  const each = [schema, ...(schema.anyOf || [])];
  const found = each.flatMap((one) => LIMITS.filter(([key]) => one[key] !== undefined).map(([key, sign]) =>
    `${sign} ${one[key]}`));
  if (schema.default !== undefined && schema.default !== null) found.push(`default ${JSON.stringify(schema.default)}`);
  return found.join(", ");
}

// What is inside a schema: the objects it may be, each with a name where there are several.
function insides(schema) {
  const whole = resolve(schema) || {};
  if (whole.anyOf || whole.oneOf) return (whole.anyOf || whole.oneOf).filter((one) => !isNull(one)).flatMap(insides);
  if (whole.type === "array" && whole.items) return insides(whole.items);
  return whole.properties ? [{ name: refName(schema) || whole.title || "", schema: whole }] : [];
}

function field(name, schema, needed) {
  const head = [
    make("span", { class: "name" }, name), " ", make("span", { class: "type" }, typeOf(schema)),
    needed ? make("span", { class: "needed" }, " needed") : null,
  ];
  const limits = limitsOf(schema);
  const about = [schema.description, limits ? `(${limits})` : ""].filter(Boolean).join(" ");
  const text = about ? make("span", { class: "about text" }, inline(about)) : null;
  const inner = insides(schema);
  if (!inner.length) return make("li", {}, head, text);
  const fold = make("details", {}, make("summary", {}, head), text);
  fold.addEventListener("toggle", () => fold.append(...inner.map(shape)), { once: true });
  return make("li", {}, fold);
}

function shape({ name, schema }) {
  const fields = Object.entries(schema.properties).map(([key, one]) =>
    field(key, one, (schema.required || []).includes(key)));
  const head = name ? make("div", {}, make("b", {}, name), schema.description ? ": " : "",
    inline((schema.description || "").split("\n")[0])) : null;
  return make("div", {}, head, make("ul", { class: "fields" }, fields));
}

function body(schema) {
  const inner = insides(schema);
  return inner.length ? inner.map(shape) : [make("p", { class: "type" }, typeOf(schema))];
}

// Examples

function example(schema) {
  const whole = resolve(schema) || {};
  return whole.examples ? whole.examples[0] : whole.example;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(op, given) {
  const lines = [`curl ${op.method === "get" ? "" : `-X ${op.method.toUpperCase()} `}${quoted(address(op, given.values))}`];
  if (op.security.length) lines.push("-H 'Authorization: Bearer sk_…'");
  if (given.body) lines.push("-H 'Content-Type: application/json'", `-d ${quoted(given.body)}`);
  return lines.join(" \\\n  ");
}

function address(op, values) {
  let path = op.path;
  const query = new URLSearchParams();
  for (const one of op.parameters) {
    const value = values[one.name];
    if (one.in === "path") path = path.replace(`{${one.name}}`, value ? encodeURIComponent(value) : `{${one.name}}`);
    else if (one.in === "query" && value) query.set(one.name, value);
  }
  return location.origin + path + (query.size ? `?${query}` : "");
}

function code(text) {
  const copy = make("button", { class: "copy", type: "button" }, "Copy");
  const shown = make("pre", {}, text);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(shown.textContent);
      copy.textContent = "Copied";
    } catch { // no clipboard without https: select it instead
      getSelection().selectAllChildren(shown);
      copy.textContent = "Selected";
    }
  });
  return [make("div", { class: "box" }, copy, shown), shown];
}

// Trying

function cookie(name) {
  const found = document.cookie.split("; ").find((one) => one.startsWith(`${name}=`));
  return found ? found.slice(name.length + 1) : "";
}

async function send(op, given, out) {
  const headers = {};
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  else if (cookie("llmlb_csrf")) headers["x-csrf-token"] = cookie("llmlb_csrf");
  if (given.body) headers["Content-Type"] = "application/json";
  out.textContent = "…";
  try {
    const answer = await fetch(address(op, given.values), {
      method: op.method.toUpperCase(), headers, body: given.body || undefined,
    });
    const head = [`${answer.status} ${answer.statusText}`, ...[...answer.headers].map(([k, v]) => `${k}: ${v}`)];
    out.textContent = `${head.join("\n")}\n\n`;
    if ((answer.headers.get("content-type") || "").startsWith("application/json")) {
      const text = await answer.text();
      try { out.textContent += JSON.stringify(JSON.parse(text), null, 2); } catch { out.textContent += text; }
      return;
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) out.append(piece.value);
  } catch (error) {
    out.append(`\n${error}`);
  }
}

function trial(op) {
  const asked = op.parameters.filter((one) => one.in !== "header");
  const inputs = asked.map((one) => make("input", { "aria-label": one.name, placeholder: (one.description || "").replaceAll("`", "") }));
  const text = op.body ? make("textarea", { "aria-label": "Body", spellcheck: "false" }) : null;
  if (text) text.value = JSON.stringify(example(op.body) || {}, null, 2);
  const compact = () => {
    try { return JSON.stringify(JSON.parse(text.value)); } catch { return text.value; }
  };
  const given = () => ({
    values: Object.fromEntries(asked.map((one, at) => [one.name, inputs[at].value])),
    body: text ? compact() : "",
  });
  const [box, line] = code(curl(op, given()));
  const refresh = () => { line.textContent = curl(op, given()); };
  const out = make("pre", { hidden: true });
  const run = make("button", { type: "submit" }, "Send");
  const form = make("form", {},
    asked.map((one, at) => make("div", { class: "row" }, make("label", {}, one.name), inputs[at])), text,
    make("h3", {}, "curl"), box, make("div", { class: "row" }, run), out);
  form.addEventListener("input", refresh);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    out.hidden = false;
    run.disabled = true;
    await send(op, given(), out);
    run.disabled = false;
  });
  return [make("h3", {}, "Try it"), form];
}

// Operations

function parameters(op) {
  if (!op.parameters.length) return [];
  const rows = op.parameters.map((one) => {
    const row = field(one.name, { ...one.schema, description: one.description }, one.required);
    row.querySelector(".type").append(`, in ${one.in}`);
    return row;
  });
  return [make("h3", {}, "Parameters"), make("ul", { class: "fields" }, rows)];
}

function answer(status, response) {
  const found = resolve(response);
  const parts = Object.entries(found.content || {}).map(([media, one]) => {
    const events = media === "text/event-stream" && (one.schema.properties.data.anyOf?.[0] ?? one.schema.properties.data).contentSchema;
    return make("div", {}, make("p", {}, make("code", {}, media)), events ? make("p", {}, "Each event is one of:") : null,
      body(events || one.schema));
  });
  const headers = Object.entries(found.headers || {}).map(([name, one]) => {
    const header = resolve(one);
    return field(name, { ...header.schema, description: header.description }, false);
  });
  const more = headers.length ? make("details", { class: "fold" }, make("summary", { class: "text" }, "Headers"),
    make("ul", { class: "fields" }, headers)) : null;
  const [first, ...rest] = prose(response.description || found.description);
  return make("details", { class: "fold", open: status < 300 },
    make("summary", {}, make("span", { class: status < 300 ? "status" : "status bad" }, status), " ",
      first ? [...first.childNodes] : []), rest, parts, more);
}

function who(op) {
  if (!op.security.length) return null;
  const ways = op.security.map((one) => Object.keys(one).join(" with "));
  return make("p", { class: "text" }, "Credentials: ", ways.join(", or "), ".");
}

function inside(op) {
  const codes = Object.keys(op.responses).sort();
  const fine = codes.filter((one) => one < 300), bad = codes.filter((one) => one >= 300);
  return make("div", {}, prose(op.description), who(op), parameters(op),
    op.body ? [make("h3", {}, "Body"), body(op.body)] : [],
    make("h3", {}, "Answer"), fine.map((one) => answer(one, op.responses[one])),
    bad.length ? [make("h3", {}, "Errors"), bad.map((one) => answer(one, op.responses[one]))] : [], trial(op));
}

function section(op) {
  const fold = make("details", { class: "op", id: op.id },
    make("summary", {}, make("span", { class: `method ${op.method}` }, op.method.toUpperCase()),
      make("span", { class: "path" }, op.path), make("span", { class: "text" }, op.summary)));
  fold.addEventListener("toggle", () => fold.append(inside(op)), { once: true });
  return fold;
}

// The page

function operations() {
  return Object.entries(spec.paths).flatMap(([path, item]) => METHODS.filter((method) => item[method]).map((method) => {
    const one = item[method];
    const content = one.requestBody && one.requestBody.content["application/json"];
    return {
      path, method, id: one.operationId, tag: one.tags[0], summary: one.summary || "",
      description: one.description || "", parameters: (one.parameters || []).map(resolve),
      body: content && content.schema, responses: one.responses, security: one.security || [],
      link: null, section: null, words: "",
    };
  }));
}

// Everything that is said of an operation, for the search.
function words(op) {
  const seen = new Set();
  const texts = [op.method, op.path, op.summary, op.description, op.tag];
  const walk = (value) => {
    if (Array.isArray(value)) value.forEach(walk);
    else if (value && typeof value === "object") {
      if (value.$ref && !seen.has(value.$ref)) { seen.add(value.$ref); walk(resolve(value)); }
      for (const [key, one] of Object.entries(value)) { texts.push(key); walk(one); }
    } else if (typeof value === "string") texts.push(value);
  };
  walk([op.parameters, op.body || null]);
  for (const [status, one] of Object.entries(op.responses)) {
    texts.push(status);
    walk(status < 300 ? one : one.description);
  }
  return texts.join(" ").toLowerCase();
}

function search(ops, groups) {
  const wanted = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const op of ops) {
    op.words ||= words(op);
    const shown = wanted.every((word) => op.words.includes(word));
    op.section.hidden = op.link.hidden = !shown;
    found += shown;
  }
  for (const { tag, parts } of groups) {
    const any = ops.some((op) => op.tag === tag && !op.section.hidden);
    for (const part of parts) part.hidden = !any;
  }
  $("state").textContent = wanted.length ? `${found} of ${ops.length} routes` : "";
}

function reveal() {
  const target = location.hash && $(location.hash.slice(1));
  if (!target) return;
  if (target.tagName === "DETAILS") target.open = true;
  target.scrollIntoView();
}

function show() {
  document.title = spec.info.title;
  $("title").textContent = spec.info.title;
  $("subtitle").replaceChildren(`version ${spec.info.version} · OpenAPI ${spec.openapi} · `,
    make("a", { href: "openapi.json" }, "openapi.json"));
  const ops = operations();
  const groups = spec.tags.map(({ name, description }) => {
    const title = make("h2", {}, name), text = make("div", { class: "text" }, prose(description)), link = make("h2", {}, name);
    $("main").append(title, text);
    $("nav").append(link);
    for (const op of ops.filter((one) => one.tag === name)) {
      op.section = section(op);
      op.link = make("a", { href: `#${op.id}` }, make("span", { class: `method ${op.method}` }, op.method.toUpperCase()),
        make("span", {}, op.path));
      $("main").append(op.section);
      $("nav").append(op.link);
    }
    return { tag: name, parts: [title, text, link] };
  });
  $("main").prepend(...prose(spec.info.description));
  $("search").addEventListener("input", () => search(ops, groups));
  $("state").textContent = "";
  reveal();
}

async function start() {
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", reveal);
  try {
    const answer = await fetch("openapi.json");
    if (!answer.ok) throw new Error(`openapi.json was answered with ${answer.status}`);
    spec = await answer.json();
    show();
  } catch (error) {
    $("state").textContent = `The document can't be shown: ${error.message}`;
    $("state").className = "bad";
  }
}

start();
