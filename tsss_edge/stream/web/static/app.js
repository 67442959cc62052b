// The page: asks for the numbers twice a second, shows the MJPEG, sends the controls.

import { Chart } from "./charts.js";

const PERIOD_MS = 500;
const STAGE_COLOURS = ["#4e79c7", "#e0914a", "#3f9c8a", "#b45a9d", "#8f8f3c", "#7a6fc2", "#c25b5b", "#6b7683"];
const STATE_KIND = { STREAMING: "good", ENDED: "", OPEN: "", STALLED: "warn", RECONNECTING: "warn", ENGINE_LOST: "warn", FAILED: "bad" };
const NOTICES = {
  STALLED: "No new picture from the source",
  RECONNECTING: "Source lost, reconnecting",
  ENGINE_LOST: "Engine lost, trying again",
  FAILED: "Source lost for good",
  ENDED: "Source has ended",
};

const byId = (id) => document.getElementById(id);
const fixed = (digits) => (value) => value.toFixed(digits);
const short = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1).replace(/\.0$/, "") : +value.toFixed(2) + "");
const percent = (share) => (100 * share).toFixed(share >= 0.9995 ? 0 : 1) + "%";

let info = null;
let paused = false;
let state = "OPEN";
const rows = new Map();
const charts = {};

async function get(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

function element(tag, className, parent, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function number(target, text, unit = "", more = null) {
  const place = byId(target);
  place.textContent = text;
  if (unit) element("small", "", place, unit);
  if (more !== null) byId(target + "-more").textContent = more;
}

function setUp() {
  byId("engine").textContent = info.engine || "-";
  byId("source").textContent = info.source || "-";
  byId("unknown-box").hidden = !info.objectness;
  for (const [name, colour] of info.classes) addClass(name, colour);
  const add = (key, options) => { charts[key] = new Chart(byId("charts"), options); };
  add("fps", { name: "Masks", unit: "per second", format: short });
  add("latency_ms", { name: "Latency", unit: "ms", format: short });
  add("age_ms", { name: "Mask age", unit: "ms since capture", format: short });
  add("dropped", { name: "Dropped frames", unit: "per second", format: short });
  add("agreement", { name: "Agreement", unit: "with PyTorch", format: percent, ceiling: 1 });
  add("miou", { name: "Live mIoU", unit: "percent", format: short, ceiling: 100 });
  charts.miou.card.hidden = true;
}

function showState(now) {
  state = now;
  const pill = byId("state");
  pill.textContent = state;
  pill.className = "pill " + (STATE_KIND[state] ?? "");
  const notice = byId("notice");
  const text = paused ? "Paused" : NOTICES[state];
  notice.hidden = !text;
  notice.textContent = text ?? "";
}

function showNumbers(status) {
  byId("size").textContent = status.size[0] ? `${status.size[0]} x ${status.size[1]}` : "-";
  number("fps", short(status.fps), "", status.source_fps ? `source ${short(status.source_fps)}` : "");
  const age = status.age_ms, total = status.frames + status.dropped;
  number("age", age ? short(age.now) : "-", age ? "ms" : "", age ? `p95 ${short(age.p95)}` : "");
  const back = status.reconnects ? `, ${status.reconnects} reconnects` : "";
  number("dropped", String(status.dropped), "", total ? `of ${total}${back}` : "");
  const agreement = status.agreement;
  const miou = status.miou === null ? "" : `mIoU ${fixed(1)(status.miou)}`;
  number("agreement", agreement === null ? "-" : percent(agreement), "", agreement === null ? miou || "no parity watch" : miou || "with PyTorch");
}

function addClass(name, colour) {
  const row = element("li", "absent", byId("classes"));
  element("span", "swatch", row).style.background = colour;
  element("span", "label", row, name);
  const bar = element("i", "", element("span", "bar", row));
  rows.set(name, { row, bar, share: element("span", "number", row, "0.0%") });
}

function showClasses(areas) {
  for (const name of Object.keys(areas)) if (!rows.has(name)) addClass(name, "transparent"); // of an engine that took over
  for (const [name, { row, bar, share }] of rows) {
    const value = areas[name] ?? 0;
    row.classList.toggle("absent", value === 0);
    bar.style.width = `${100 * value}%`;
    share.textContent = `${(100 * value).toFixed(1)}%`;
  }
  // Largest first, by whole percents: the list does not jump about with every frame.
  const size = (name) => Math.round(100 * (areas[name] ?? 0));
  const order = [...rows.keys()].sort((a, b) => size(b) - size(a));
  const list = byId("classes");
  if (order.some((name, i) => list.children[i] !== rows.get(name).row)) list.append(...order.map((name) => rows.get(name).row));
}

function showStages(stages) {
  const bar = byId("stagebar"), list = byId("stages");
  bar.replaceChildren();
  list.replaceChildren();
  Object.entries(stages).forEach(([name, ms], i) => {
    const colour = STAGE_COLOURS[i % STAGE_COLOURS.length];
    const part = element("i", "", bar);
    part.style.flex = String(Math.max(ms, 0.001));
    part.style.background = colour;
    const row = element("li", "", list);
    element("span", "dot", row).style.background = colour;
    element("span", "", row, name);
    element("span", "number", row, ms.toFixed(2));
  });
}

let shownFrames = "";

function showDrift(drift) {
  byId("drift").hidden = !drift;
  if (!drift) return;
  byId("drift").classList.toggle("raised", drift.raised);
  byId("drift-more").textContent = drift.raised ? `since frame ${drift.since}` : "as the evaluation set";
  const moved = drift.moved.slice(0, 3).map((m) => `${m.figure} ${m.profile.toFixed(3)} \u2192 ${m.now.toFixed(3)}`);
  byId("drift-text").textContent = moved.join(", ") || `farthest: ${drift.figure}, ${percent(drift.score)} of its limit`;
  const frames = drift.raised ? drift.examples : [];
  if (frames.join() === shownFrames) return;
  shownFrames = frames.join();
  byId("drift-frames").replaceChildren();
  for (const frame of frames) {
    const picture = element("img", "", byId("drift-frames"));
    picture.alt = picture.title = `frame ${frame}`;
    picture.addEventListener("error", () => picture.remove());
    picture.src = `api/drift/${frame}.jpg`;
  }
}

const PHASES = { shadow: "runs beside", opening: "is being opened", promoted: "in service, on probation", settled: "in service", back: "went back" };

function showRollout(rollout) {
  byId("rollout").hidden = !rollout;
  if (!rollout) return;
  byId("rollout").classList.toggle("raised", rollout.phase === "back");
  byId("rollout-new").textContent = rollout.new;
  byId("rollout-phase").textContent = PHASES[rollout.phase];
  byId("rollout-reason").textContent = rollout.reason;
  if (rollout.phase === "promoted" || rollout.phase === "settled") byId("engine").textContent = rollout.new;
  else byId("engine").textContent = rollout.old;
  const rows = [["frames compared", String(rollout.compared)]];
  if (rollout.agreement !== null) rows.push(["agreement", percent(rollout.agreement)], ["lowest", percent(rollout.agreement_min)]);
  if (rollout.beyond !== null) rows.push(["of a category that one lacks", percent(rollout.beyond)]);
  if (rollout.latency_p95_ms !== null) rows.push(["latency p50 / p95, one thread", `${short(rollout.latency_p50_ms)} / ${short(rollout.latency_p95_ms)} ms`]);
  if (rollout.age_p95_ms !== null) rows.push(["mask age p95", `${short(rollout.age_p95_ms)} ms`]);
  if (rollout.miou_service !== null) rows.push(["mIoU, in service / beside", `${rollout.miou_service.toFixed(1)} / ${rollout.miou_other.toFixed(1)}`]);
  byId("rollout-numbers").replaceChildren();
  for (const [name, value] of rows) {
    const row = element("li", "", byId("rollout-numbers"));
    element("span", "", row, name);
    element("span", "number", row, value);
  }
}

function showCharts(history) {
  charts.miou.card.hidden = !history.miou.some((v) => v !== null);
  for (const [key, chart] of Object.entries(charts)) if (!chart.card.hidden) chart.update(history.t, history[key]);
}

async function refresh() {
  try {
    const status = await get("api/status");
    showState(status.state);
    if (!paused) {
      showNumbers(status);
      showClasses(status.areas);
      showStages(status.stages_ms);
      showDrift(status.drift);
      showRollout(status.rollout);
      showCharts(status.history);
    }
    if (status.state !== "ENDED" && !paused && !byId("video").src) play();
  } catch (error) {
    showState("OFFLINE");
    byId("video").removeAttribute("src"); // asked for again when the server answers
  }
  setTimeout(refresh, PERIOD_MS);
}

function play() {
  byId("video").src = "video.mjpg?" + Date.now();
}

// Pausing keeps the last picture on a canvas and closes the connection: the stream itself goes on.
function togglePause() {
  paused = !paused;
  const video = byId("video"), still = byId("still"), button = byId("pause");
  button.textContent = paused ? "Resume" : "Pause";
  button.setAttribute("aria-pressed", String(paused));
  still.hidden = !paused;
  video.hidden = paused;
  showState(state);
  if (!paused) return play();
  still.width = video.naturalWidth || 1;
  still.height = video.naturalHeight || 1;
  still.getContext("2d").drawImage(video, 0, 0);
  video.removeAttribute("src");
}

let sending = false, wanted = null;

// At most one request under way; the slider's last position always arrives.
async function sendView() {
  const alpha = Number(byId("alpha").value);
  byId("alpha-value").textContent = `${alpha}%`;
  wanted = { alpha: alpha / 100, unknown: byId("unknown").checked, names: byId("names").checked };
  if (sending) return;
  sending = true;
  while (wanted) {
    const body = JSON.stringify(wanted);
    wanted = null;
    await fetch("api/view", { method: "POST", headers: { "Content-Type": "application/json" }, body }).catch(() => {});
  }
  sending = false;
}

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

async function start() {
  info = await get("api/info");
  const view = await get("api/view");
  byId("alpha").value = String(Math.round(100 * view.alpha));
  byId("alpha-value").textContent = `${Math.round(100 * view.alpha)}%`;
  byId("unknown").checked = view.unknown;
  byId("names").checked = view.names;
  setUp();
  byId("alpha").addEventListener("input", sendView);
  byId("unknown").addEventListener("change", sendView);
  byId("names").addEventListener("change", sendView);
  byId("pause").addEventListener("click", togglePause);
  byId("theme").addEventListener("click", toggleTheme);
  play();
  refresh();
}

start();
