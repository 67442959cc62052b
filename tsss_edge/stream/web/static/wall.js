// The wall: one MJPEG for all cameras, and over each tile a link with its numbers, asked for once a second.

const PERIOD_MS = 1000;
const STATE_KIND = { STREAMING: "good", ENDED: "", OPEN: "", STALLED: "warn", RECONNECTING: "warn", ENGINE_LOST: "warn", FAILED: "bad" };
const byId = (id) => document.getElementById(id);
const tiles = new Map();

function part(tag, className, parent) {
  const made = document.createElement(tag);
  made.className = className;
  parent.append(made);
  return made;
}

function tile(name) {
  if (!tiles.has(name)) {
    const link = part("a", "tile-link", byId("tiles"));
    link.href = `camera/${name}/`;
    part("b", "", link).textContent = name;
    tiles.set(name, { link, state: part("span", "pill", link), numbers: part("small", "", link) });
  }
  return tiles.get(name);
}

function show(camera) {
  const { link, state, numbers } = tile(camera.name);
  link.dataset.state = camera.state;
  state.textContent = camera.state;
  state.className = "pill " + (STATE_KIND[camera.state] ?? "");
  state.hidden = camera.state === "STREAMING";
  const age = camera.age_ms === null ? "no mask yet" : `${camera.age_ms.toFixed(0)} ms`;
  numbers.textContent = `${camera.fps.toFixed(1)}/s, ${age}, ${camera.dropped} dropped`;
}

function showHead(wall) {
  byId("engine").textContent = wall.engine || "-";
  byId("fps").textContent = wall.fps.toFixed(1);
  const well = wall.cameras.filter((camera) => camera.state === "STREAMING").length;
  byId("cameras").textContent = `${well} of ${wall.cameras.length} streaming`;
  byId("state").textContent = well === wall.cameras.length ? "STREAMING" : well ? "SOME ARE DOWN" : "DOWN";
  byId("state").className = "pill " + (well === wall.cameras.length ? "good" : well ? "warn" : "bad");
  byId("tiles").style.gridTemplate = `repeat(${wall.layout.rows}, 1fr) / repeat(${wall.layout.columns}, 1fr)`;
}

async function refresh() {
  try {
    const response = await fetch("api/wall", { cache: "no-store" });
    if (!response.ok) throw new Error(response.status);
    const wall = await response.json();
    showHead(wall);
    wall.cameras.forEach(show);
    if (!byId("picture").getAttribute("src")) byId("picture").src = "wall.mjpg?" + Date.now();
  } catch (error) {
    byId("state").textContent = "OFFLINE";
    byId("state").className = "pill bad";
    byId("picture").removeAttribute("src"); // asked for again when the server answers
  }
  setTimeout(refresh, PERIOD_MS);
}

refresh();
