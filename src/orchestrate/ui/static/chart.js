"use strict";
// Charts of curves: smoothing, logarithmic scale, zoom by dragging (double click: back), one pointer for all.
{  // a room of its own: names of the other scripts are free here
const BOX = document.querySelector("[data-curves]");
const MANY = 12;  // more curves than that have no legend: faint, the nearest one named
const pointer = uPlot.sync("curves");
let current = {}, drawn = [];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const palette = () => ["--s0", "--s1", "--s2", "--s3", "--s4", "--s5"].map(colour);
const setting = (name) => document.querySelector(`[data-chart="${name}"]`);

function smoothed(values, share) {  // an exponential mean, with its beginning put right
  if (!share) return values;
  let mean = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = share * mean + (1 - share) * value;
    weight = share * weight + (1 - share);
    return mean / weight;
  });
}

// -- colors of curves by a setting: distinct ones for a few values, a scale for many numbers ------------------
const mixed = (from, to, share) => {
  const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  return `rgb(${[0, 1, 2].map((i) => Math.round(part(from, i) + (part(to, i) - part(from, i)) * share)).join(" ")})`;
};

let by = null;  // {values: by the label of a run, order: all values}

function colors() {
  const all = palette(), key = document.querySelector("#colors");
  if (!by) { key?.replaceChildren(); return () => null; }
  const numbers = by.order.length > all.length && by.order.every((v) => v !== "" && Number.isFinite(Number(v)));
  const low = Math.min(...by.order.map(Number)), high = Math.max(...by.order.map(Number));
  const of = (value) => {
    if (value === undefined || value === "") return colour("--quiet");
    if (numbers) return mixed(all[0], all[1], high > low ? (Number(value) - low) / (high - low) : 0);
    return all[by.order.indexOf(value) % all.length];
  };
  const shown = numbers ? [by.order[0], by.order.at(-1)] : by.order.slice(0, 24);
  key?.replaceChildren(...shown.map((value, i) => {
    const item = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = of(value);
    item.append(dot, (numbers ? ["from ", "to "][i] : "") + (value === "" ? "not set" : value));
    return item;
  }), ...(by.order.length > shown.length && !numbers ? [`and ${by.order.length - shown.length} more`] : []));
  return (run) => of(by.values[run]);
}

// -- many curves: drawn once on the canvas of the plot; the one under the pointer on a canvas above it ---------
function trace(plot, line, places) {
  const path = new Path2D();
  let begun = false, points = 0, last = null;
  for (let i = 0; i < places.length; i++) {
    if (line[i] === null || line[i] === undefined) continue;
    const x = plot.valToPos(places[i], "x", true), y = plot.valToPos(line[i], "y", true);
    if (begun) path.lineTo(x, y); else path.moveTo(x, y);
    begun = true; points += 1; last = [x, y];
  }
  if (points === 1) path.arc(last[0], last[1], 2 * devicePixelRatio, 0, 2 * Math.PI);
  return path;
}

function filled(line) {  // up to its end a value at each place, so that the nearest curve is found by looking up
  let last = null;
  const end = line.findLastIndex((v) => v !== null);
  return line.map((v, i) => (i > end ? null : v === null ? last : (last = v)));
}

let named = -1;  // the run under the pointer, in all charts

function name(index) {
  if (index === named) return;
  named = index;
  for (const plot of drawn) plot.light?.(index);
}

function crowd(chart, lines, box, of) {
  const all = palette(), near = box.nextElementSibling, held = lines.map(filled);
  const stroke = (i) => of(chart.series[i].run) ?? all[0];
  const run = new Map();
  for (const [i, one] of chart.series.entries()) run.set(one.run, [...(run.get(one.run) ?? []), i]);
  const above = document.createElement("canvas");
  above.className = "above";
  return {
    above, near, held,
    draw(plot) {
      const to = plot.ctx, { left, top, width, height } = plot.bbox;
      to.save();
      to.beginPath(); to.rect(left, top, width, height); to.clip();
      to.lineWidth = 0.7 * devicePixelRatio;
      to.globalAlpha = 0.45;
      for (let i = 0; i < lines.length; i++) { to.strokeStyle = stroke(i); to.stroke(trace(plot, lines[i], chart.places)); }
      to.restore();
      const over = plot.over.getBoundingClientRect();
      above.width = Math.round(over.width * devicePixelRatio); above.height = Math.round(over.height * devicePixelRatio);
      plot.light(named);
    },
    light(plot, index) {
      const to = above.getContext("2d"), label = current.runs?.[index];
      to.clearRect(0, 0, above.width, above.height);
      near.textContent = label ?? "";
      to.save();
      to.translate(-plot.bbox.left, -plot.bbox.top);
      to.lineWidth = 2.2 * devicePixelRatio; to.strokeStyle = colour("--ink");
      for (const i of run.get(label) ?? []) to.stroke(trace(plot, lines[i], chart.places));
      to.restore();
    },
    nearest(plot) {
      const { idx, top } = plot.cursor;
      if (idx === null || idx === undefined || top < 0) return -1;
      let best = -1, least = 24;
      for (let i = 0; i < held.length; i++) {
        if (held[i][idx] === null) continue;
        const apart = Math.abs(plot.valToPos(held[i][idx], "y") - top);
        if (apart < least) { least = apart; best = i; }
      }
      return best < 0 ? -1 : current.runs.indexOf(chart.series[best].run);
    },
  };
}

function options(chart, box, many, of) {
  const colours = palette(), ink = colour("--quiet"), rule = colour("--rule");
  const axis = { stroke: ink, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 }, font: "11px system-ui, sans-serif" };
  const number = (v) => (v === null || v === undefined ? "" : Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-3) ? v.toExponential(2) : String(Number(v.toPrecision(4))));
  const log = setting("log")?.checked && chart.series.every((s) => s.values.every((v) => v === null || v > 0));
  const alone = (one) => one.values.reduce((n, v) => n + (v !== null), 0) === 1;
  return {
    width: box.clientWidth, height: Math.max(200, Math.min(320, box.clientWidth * 0.45)),
    cursor: { sync: { key: pointer.key }, points: { show: !many }, ...(many ? {} : { focus: { prox: 24 } }) },
    focus: { alpha: many ? 1 : 0.35 },
    legend: { live: !many, show: !many },
    scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
    axes: [
      { ...axis, label: chart.axis, labelSize: 16, labelFont: "11px system-ui, sans-serif", size: 34, values: (u, at) => at.map((v) => (v >= 1e6 ? v / 1e6 + "M" : v >= 1e4 ? v / 1e3 + "k" : v)) },
      { ...axis, size: 58, values: (u, at) => at.map((v) => (v === null ? "" : number(v))) },
    ],
    series: [
      { label: chart.axis },
      ...(many ? [{}, {}] : chart.series.map((one, i) => ({
        label: one.label, stroke: of(one.run) ?? colours[i % colours.length], width: 1.6, spanGaps: true,
        dash: i < colours.length ? undefined : [6, 3], points: { show: alone(one), size: 8, fill: of(one.run) ?? colours[i % colours.length] }, value: (u, v) => number(v),
      }))),
    ],
  };
}

function ends(lines, places, end) {  // of all curves at each place: what the scales are made of
  return places.map((_, i) => lines.reduce((found, line) => (line[i] === null ? found : found === null ? line[i] : end(found, line[i])), null));
}

function plotted(chart, box, of) {
  const share = Number(setting("smooth")?.value ?? 0) / 100, many = chart.series.length > MANY;
  const lines = chart.series.map((s) => smoothed(s.values, share)), made = options(chart, box, many, of);
  if (!many) return new uPlot(made, [chart.places, ...lines], box);
  const all = crowd(chart, lines, box, of);
  made.hooks = {
    ready: [(plot) => plot.over.append(all.above)],
    draw: [(plot) => { plot.light ??= (index) => all.light(plot, index); all.draw(plot); }],
    setCursor: [(plot) => { if (plot.over.matches(":hover")) name(all.nearest(plot)); }],
  };
  return new uPlot(made, [chart.places, ends(lines, chart.places, Math.min), ends(lines, chart.places, Math.max)], box);
}

function draw() {
  for (const plot of drawn) plot.destroy();
  BOX.replaceChildren();
  const of = colors(), charts = current.charts ?? [];
  const places = charts.map((chart) => {  // all of them first: a chart is as wide as its place among the others
    const figure = document.createElement("figure"), head = document.createElement("figcaption");
    const box = document.createElement("div"), near = document.createElement("small");
    const last = (s) => s.values.findLast((v) => v !== null);
    head.textContent = chart.name;
    box.className = "plot";
    figure.append(head, box, near);
    BOX.append(figure);
    const words = chart.series.slice(0, MANY).map((s) => `${s.label}: last ${last(s)}`).join("; ");
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", `${chart.name} over ${chart.axis}. ${words}`);
    return box;
  });
  drawn = charts.map((chart, i) => plotted(chart, places[i], of));
  if (!charts.length) BOX.textContent = BOX.dataset.empty;
}

async function coloured() {
  const wanted = setting("color")?.value;
  by = null;
  if (wanted) {
    const answer = await fetch(`${BOX.dataset.colors}&by=${encodeURIComponent(wanted)}`);
    if (answer.ok) by = await answer.json();
  }
  draw();
}

async function load() {
  const axis = setting("axis")?.value ?? "steps";
  const mark = BOX.dataset.curves.includes("?") ? "&" : "?";
  const answer = await fetch(`${BOX.dataset.curves}${mark}axis=${axis}`);
  if (!answer.ok) return;
  const charts = await answer.json();
  current = { charts, runs: [...new Set(charts.flatMap((chart) => chart.series.map((s) => s.run)))] };
  const zoomed = drawn.some((plot) => plot.scales.x.min > plot.data[0][0] || plot.scales.x.max < plot.data[0].at(-1));
  const few = charts.every((chart) => chart.series.length <= MANY);
  if (zoomed && few) for (const [i, plot] of drawn.entries()) plot.setData([charts[i]?.places ?? [], ...(charts[i]?.series ?? []).map((s) => s.values)], false);
  else draw();
}

if (BOX) {
  load().then(() => setting("color")?.value && coloured());
  BOX.addEventListener("mouseleave", () => name(-1));
  document.addEventListener("points", load);
  document.addEventListener("change", (event) => { if (event.target.dataset.chart) ({ axis: load, color: coloured })[event.target.dataset.chart]?.() ?? draw(); });
  document.addEventListener("click", (event) => { if (event.target.dataset.chart === "whole") draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = BOX.clientWidth;
  new ResizeObserver(() => { if (BOX.clientWidth !== width) { width = BOX.clientWidth; draw(); } }).observe(BOX);
}
}
