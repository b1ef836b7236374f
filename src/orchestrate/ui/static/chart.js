"use strict";
// Charts of curves: smoothing, logarithmic scale, zoom by dragging (double click: back), one pointer for all.
{  // a room of its own: names of the other scripts are free here
const BOX = document.querySelector("[data-curves]");
const MANY = 12;  // more curves than that have no legend: one colour, faint, the nearest named
const pointer = uPlot.sync("curves");
let told = [], drawn = [];

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

function options(chart, box, many) {
  const colours = palette(), ink = colour("--quiet"), rule = colour("--rule");
  const axis = { stroke: ink, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 }, font: "11px system-ui, sans-serif" };
  const number = (v) => (v === null || v === undefined ? "" : Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-3) ? v.toExponential(2) : String(Number(v.toPrecision(4))));
  const log = setting("log")?.checked && chart.series.every((s) => s.values.every((v) => v === null || v > 0));
  return {
    width: box.clientWidth, height: Math.max(200, Math.min(320, box.clientWidth * 0.45)),
    cursor: { sync: { key: pointer.key }, focus: { prox: 24 }, points: { show: !many } },
    focus: { alpha: many ? 0.15 : 0.35 },
    legend: { live: !many, show: !many },
    scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
    axes: [
      { ...axis, label: chart.axis, labelSize: 16, labelFont: "11px system-ui, sans-serif", size: 34, values: (u, at) => at.map((v) => (v >= 1e6 ? v / 1e6 + "M" : v >= 1e4 ? v / 1e3 + "k" : v)) },
      { ...axis, size: 58, values: (u, at) => at.map((v) => (v === null ? "" : number(v))) },
    ],
    series: [
      { label: chart.axis },
      ...chart.series.map((one, i) => ({
        label: one.label, stroke: many ? colours[0] : colours[i % colours.length], width: many ? 0.7 : 1.6, spanGaps: true, alpha: many ? 0.45 : 1,
        dash: many || i < colours.length ? undefined : [6, 3], points: { show: false }, value: (u, v) => number(v),
      })),
    ],
    hooks: many ? { setSeries: [(u, i) => { box.nextElementSibling.textContent = i ? chart.series[i - 1].label : ""; }] } : {},
  };
}

function draw() {
  for (const plot of drawn) plot.destroy();
  BOX.replaceChildren();
  const share = Number(setting("smooth")?.value ?? 0) / 100;
  const places = told.map((chart) => {  // all of them first: a chart is as wide as its place among the others
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
  drawn = told.map((chart, i) => {
    const lines = chart.series.map((s) => smoothed(s.values, share));
    return new uPlot(options(chart, places[i], chart.series.length > MANY), [chart.places, ...lines], places[i]);
  });
  if (!told.length) BOX.textContent = BOX.dataset.empty;
}

async function load() {
  const axis = setting("axis")?.value ?? "steps";
  const mark = BOX.dataset.curves.includes("?") ? "&" : "?";
  const answer = await fetch(`${BOX.dataset.curves}${mark}axis=${axis}`);
  if (!answer.ok) return;
  told = await answer.json();
  const zoomed = drawn.some((plot) => plot.scales.x.min > plot.data[0][0] || plot.scales.x.max < plot.data[0].at(-1));
  if (zoomed) for (const [i, plot] of drawn.entries()) plot.setData([told[i]?.places ?? [], ...(told[i]?.series ?? []).map((s) => s.values)], false);
  else draw();
}

if (BOX) {
  load();
  document.addEventListener("points", load);
  document.addEventListener("change", (event) => { if (event.target.dataset.chart) event.target.dataset.chart === "axis" ? load() : draw(); });
  document.addEventListener("click", (event) => { if (event.target.dataset.chart === "whole") draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = BOX.clientWidth;
  new ResizeObserver(() => { if (BOX.clientWidth !== width) { width = BOX.clientWidth; draw(); } }).observe(BOX);
}
}
