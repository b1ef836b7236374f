"use strict";
// What pages share: asking the server, drawing conversations as text, running what a key or a button says.
const at = (id) => document.getElementById(id);
let now = null, busy = false;  // `now`: what is shown

async function ask(body) {
  const answer = await fetch(location.pathname, { method: "POST", body: JSON.stringify(body) });
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

function part(name, text, title = name, folded = false) {
  const box = document.createElement(folded ? "details" : "section");
  const head = document.createElement(folded ? "summary" : "h2");
  box.className = "part";
  if (/^[a-z]+$/.test(name)) box.classList.add(name);
  head.textContent = title;
  box.append(head);
  say(box, text);
  return box;
}

function say(box, text, kind = "") {
  if (!text) return;
  const body = document.createElement("pre");
  body.className = kind;
  body.textContent = text;
  box.append(body);
}

const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

function turn(message) {
  if (message === null || typeof message !== "object") return part("message", plain(message));
  const { role, from, content, value, tool_calls, tool_call_id, name, weight, reasoning, reasoning_content, ...rest } = message;
  const who = String(role ?? from ?? "message"), title = [who];
  if (given(name)) title.push(plain(name));
  if (given(tool_call_id)) title.push(`answers ${plain(tool_call_id)}`);
  if (given(weight)) title.push(weight === 0 ? "not trained" : `weight ${plain(weight)}`);
  const box = part(who, "", title.join(" · "));
  for (const thought of [reasoning, reasoning_content].filter(given)) say(box, plain(thought), "reasoning");
  if (given(content ?? value)) say(box, said(content ?? value));
  for (const call of Array.isArray(tool_calls) ? tool_calls : given(tool_calls) ? [tool_calls] : []) say(box, called(call), "call");
  const left = Object.entries(rest).filter(([, held]) => given(held));
  if (left.length) say(box, plain(Object.fromEntries(left)));
  return box;
}

const given = (value) => value !== undefined && value !== null;
const all = (list, test) => Array.isArray(list) && list.length > 0 && list.every(test);

function said(content) {
  if (!all(content, (p) => p && (typeof p.text === "string" || p.image_url))) return plain(content);
  return content.map((p) => p.text ?? `[image: ${plain(p.image_url.url ?? p.image_url).slice(0, 120)}]`).join("\n\n");
}

function called(call) {  // arguments stay as they are written: JavaScript would round large numbers
  const made = call?.function ?? call;
  if (typeof made?.name !== "string") return plain(call);
  return `${made.name}(${plain(made.arguments ?? "")})${given(call.id) ? `   ${plain(call.id)}` : ""}`;
}

function tools(value) {
  let list = value;
  try { if (typeof value === "string") list = JSON.parse(value); } catch { }
  const names = (Array.isArray(list) ? list : []).map((t) => t?.function?.name ?? t?.name ?? "?");
  return part("tools", plain(list), `tools: ${names.join(", ")}`, true);
}

function fail(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

async function run(name, value) {  // one of the page's `acts`; nothing runs beside another
  if (busy || !now) return;
  busy = true;
  try { await acts[name](value); } catch (error) {
    fail(error instanceof TypeError ? "the review has ended; start it again to go on" : error.message);
  } finally { busy = false; }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (button) { button.blur(); run(button.dataset.do, button.dataset.value); }
});
