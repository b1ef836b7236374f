"use strict";
// What htmx does not do: streams, curves in rows as they come into view, keys, copying.
const base = document.body.dataset.base;
const find = (where) => document.querySelector(where);

// -- streams: one connection for each page that is looked at; a browser has six for a server -----------------
let source = null, streamed = null, since = "";

function live(text, lost = false) {
  const at = find("#live");
  at.textContent = text;
  at.classList.toggle("lost", lost);
}

function connect() {
  const holder = find("[data-stream]");
  source?.close();
  source = null;
  if (!holder || document.hidden) return;
  if (holder !== streamed) since = holder.dataset.since;
  streamed = holder;
  const mark = holder.dataset.stream.includes("?") ? "&" : "?";
  source = new EventSource(`${holder.dataset.stream}${mark}since=${encodeURIComponent(since)}`);
  source.onopen = () => live("live");
  source.onerror = () => live("not connected: start orchestrate ui again", true);
  source.onmessage = (event) => {
    const update = JSON.parse(event.data);
    if (update.since) since = update.since;
    if (update.html) put(update.html, holder);
    for (const id of update.gone ?? []) document.getElementById(id)?.remove();
    if (update.points) document.dispatchEvent(new CustomEvent("points"));
  };
}

function put(html, holder) {  // each element takes the place of the one with its id; a new row comes first
  const made = document.createElement("template");
  made.innerHTML = html;
  for (const part of [...made.content.children]) {
    const old = document.getElementById(part.id);
    const body = holder.querySelector("tbody");
    if (old?.isEqualNode(part)) continue;
    if (old) {
      const held = old.contains(document.activeElement) && document.activeElement;
      const scrolled = old.querySelector(".events")?.scrollTop;
      for (const box of old.querySelectorAll(":checked")) part.querySelector("input")?.setAttribute("checked", "");
      if (old.classList.contains("at")) part.classList.add("at");
      old.replaceWith(part);
      const same = (one) => held.tagName === one.tagName && held.getAttribute("href") === one.getAttribute("href");
      if (held) [...part.querySelectorAll("a, input, [tabindex]")].find(same)?.focus({ preventScroll: true });
      if (scrolled) part.querySelector(".events").scrollTop = scrolled;
    } else if (part.tagName === "TR" && body && !holder.dataset.fixed) body.prepend(part);
    htmx.process(part);
  }
}

document.addEventListener("visibilitychange", connect);
document.addEventListener("htmx:afterSettle", () => {
  if (find("[data-stream]") !== streamed) connect();
  curves();
});

// -- curves in rows ------------------------------------------------------------------------------------------
let waiting = new Set(), watcher = null;

function curves() {
  watcher?.disconnect();
  watcher = new IntersectionObserver((seen) => {
    for (const one of seen) if (one.isIntersecting) {
      watcher.unobserve(one.target);
      if (!waiting.size) setTimeout(drawn, 60);
      waiting.add(one.target.closest("tr").id);
    }
  });
  for (const cell of document.querySelectorAll('td[data-spark=""]')) watcher.observe(cell);
}

async function drawn() {
  const asked = [...waiting].slice(0, 40);
  for (const id of asked) waiting.delete(id);
  if (waiting.size) setTimeout(drawn, 60);
  const answer = await fetch(`${base}/sparks?${asked.map((id) => "run=" + encodeURIComponent(id)).join("&")}`);
  if (!answer.ok) return;
  for (const [id, [line, last]] of Object.entries(await answer.json())) {
    const cell = document.getElementById(id)?.querySelector("td.loss");
    if (!cell || !line) continue;
    const made = document.createElement("template");
    made.innerHTML = '<svg class="spark" viewBox="0 0 80 16" preserveAspectRatio="none" aria-hidden="true"><polyline/></svg>';
    made.content.querySelector("polyline").setAttribute("points", line);
    cell.dataset.spark = line;
    cell.replaceChildren(made.content, ` ${last}`);
  }
}

// -- keys ----------------------------------------------------------------------------------------------------
function move(by) {
  const rows = [...document.querySelectorAll("table.runs tbody tr")];
  if (!rows.length) return;
  const now = rows.findIndex((row) => row.classList.contains("at"));
  rows[now]?.classList.remove("at");
  const row = rows[Math.max(0, Math.min(rows.length - 1, now + by))];
  row.classList.add("at");
  row.querySelector("a").focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
}

const acts = {
  "/": () => find('input[type="search"]')?.focus(),
  j: () => move(1), k: () => move(-1),
  x: () => { const box = find("tr.at input"); if (box) box.checked = !box.checked; },
  c: () => find("#compare")?.click(),
  "?": () => find("#keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=checkbox]), select, textarea, dialog")) return;
  const page = document.querySelectorAll("nav a")[Number(event.key) - 1];
  const act = acts[event.key] ?? (page && (() => page.click()));
  if (act) { event.preventDefault(); act(); }
});

// -- copying, sliders ----------------------------------------------------------------------------------------
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

document.addEventListener("input", (event) => {
  const shown = event.target.closest("label")?.querySelector("output");
  if (shown) shown.textContent = Number(event.target.value).toLocaleString("en-US");
});

connect();
curves();
