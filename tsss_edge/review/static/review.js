// The review page: one picture after the other. The server has every answer on disk before the next picture is shown.

const byId = (id) => document.getElementById(id);
let state = null;
let at = 0; // index of the picture shown
let labels = new Set();
let mask = "";
let showMask = true;
let sending = Promise.resolve(); // requests go one after the other, in the order of the keys

async function request(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, { cache: "no-store", ...options });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? `${path}: ${response.status}`);
  return answer;
}

// An action at a time; what goes wrong is said on the page.
function run(action) {
  sending = sending.then(action).then(() => say(""), (error) => say(error.message));
  return sending;
}

function say(text) {
  byId("error").textContent = text;
  byId("error").hidden = !text;
}

const current = () => state.pictures[at];
const address = (kind, id) => `/${kind}/${id.split("/").map(encodeURIComponent).join("/")}`;

async function load(id) {
  state = await request("/api/state");
  const found = id === undefined ? -1 : state.pictures.findIndex((p) => p.id === id);
  const open = state.pictures.findIndex((p) => !p.done);
  show(found >= 0 ? found : open >= 0 ? open : 0);
}

function show(index) {
  at = Math.max(0, Math.min(index, state.pictures.length - 1));
  const picture = current();
  labels = new Set(picture.labels);
  mask = picture.mask;
  byId("picture").src = address("picture", picture.id);
  byId("picture").dataset.id = picture.id;
  if (picture.has_mask) byId("mask").src = address("mask", picture.id);
  if (at + 1 < state.pictures.length) new Image().src = address("picture", state.pictures[at + 1].id);
  draw();
}

function draw() {
  const picture = current();
  byId("mask").hidden = !(picture.has_mask && showMask && mask !== "refused");
  const unknown = picture.unknown >= 0.02 ? `, unknown object on ${(100 * picture.unknown).toFixed(0)}%` : "";
  byId("status").textContent = (picture.done ? "labelled" : "not labelled yet") + unknown;
  byId("accept").setAttribute("aria-pressed", String(mask === "accepted"));
  byId("refuse").setAttribute("aria-pressed", String(mask === "refused"));
  byId("accept").disabled = byId("refuse").disabled = !picture.has_mask;
  byId("undo").disabled = !state.can_undo;
  byId("count").textContent = `${state.done} of ${state.pictures.length}`;
  byId("progress").max = state.pictures.length;
  byId("progress").value = state.done;
  byId("rate").textContent = state.per_hour ? `${Math.round(state.per_hour)} an hour` : "";
  drawToggles();
}

function drawToggles() {
  byId("toggles").replaceChildren(
    ...state.order.map((id, n) => {
      const row = document.createElement("li"), button = document.createElement("button");
      const swatch = document.createElement("span"), name = document.createElement("span");
      button.type = "button";
      button.dataset.name = name.textContent = state.names[id];
      button.setAttribute("aria-pressed", String(labels.has(id)));
      swatch.className = "swatch";
      swatch.style.background = state.colours[id];
      name.className = "label";
      button.append(swatch, name);
      if (n < 9) {
        const key = document.createElement("kbd");
        key.textContent = String(n + 1);
        button.append(key);
      }
      button.addEventListener("click", () => toggle(id));
      row.append(button);
      return row;
    }),
  );
}

// A confirmed picture is written again at once; another one when it is confirmed.
function toggle(id) {
  labels.has(id) ? labels.delete(id) : labels.add(id);
  if (mask === "accepted") mask = "";
  if (current().done) run(() => send(true));
  draw();
}

async function send(done) {
  const answer = await request("/api/answer", { id: current().id, labels: [...labels], done, mask });
  state.done += Number(answer.done) - Number(current().done);
  state.pictures[at] = answer;
  state.can_undo = true;
  mask = answer.mask;
  draw();
}

async function confirm() {
  await send(true);
  const next = state.pictures.findIndex((p, n) => n > at && !p.done);
  if (next < 0) return load(); // what was collected meanwhile
  if (state.done % 10 === 0) state.per_hour = (await request("/api/state")).per_hour;
  show(next);
}

function judge(answer) {
  return run(async () => {
    const before = mask;
    mask = mask === answer ? "" : answer;
    try {
      await send(true);
    } catch (error) {
      mask = before;
      draw();
      throw error;
    }
  });
}

async function undo() {
  const { id } = await request("/api/undo", {});
  if (id) await load(id);
}

async function add(event) {
  event.preventDefault();
  const field = byId("name"), name = field.value;
  if (!name.trim()) return;
  run(async () => {
    const { id } = await request("/api/category", { name });
    const kept = labels;
    const shown = current().id;
    state = await request("/api/state");
    at = state.pictures.findIndex((p) => p.id === shown);
    labels = kept.add(id);
    if (current().done) await send(true);
    field.value = "";
    field.blur();
    draw();
  });
}

const KEYS = {
  Enter: () => run(confirm), " ": () => run(confirm), ArrowRight: () => run(async () => show(at + 1)), ArrowLeft: () => run(async () => show(at - 1)),
  z: () => run(undo), Backspace: () => run(undo), n: () => byId("name").focus(), m: () => { showMask = !showMask; draw(); },
  a: () => judge("accepted"), r: () => judge("refused"), 0: () => { labels.clear(); if (mask === "accepted") mask = ""; if (current().done) run(() => send(true)); draw(); },
};

function press(event) {
  if (event.target === byId("name")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.ctrlKey && event.key !== "z") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const digit = "123456789".indexOf(key);
  const action = digit >= 0 ? () => run(async () => state.order[digit] !== undefined && toggle(state.order[digit])) : KEYS[key];
  if (!action) return;
  event.preventDefault();
  action();
}

byId("next").addEventListener("click", () => run(confirm));
byId("back").addEventListener("click", KEYS.ArrowLeft);
byId("undo").addEventListener("click", KEYS.z);
byId("accept").addEventListener("click", KEYS.a);
byId("refuse").addEventListener("click", KEYS.r);
byId("new").addEventListener("submit", add);
document.addEventListener("keydown", press);
run(() => load());
