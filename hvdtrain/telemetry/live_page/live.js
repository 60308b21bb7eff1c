// Requests /api/live every two seconds while the page is visible, and shows the answer. Texts come
// from outside, so they are only ever assigned to textContent.

const PERIOD_MS = 2000, PATIENCE_MS = 10000;
const LATE = 0.2; // a rank that is late by this share of a step gets the full colour
const API = new URL("api/live", location.href);
API.username = API.password = ""; // fetch refuses an address with a password

const $ = id => document.getElementById(id);

const short = new Intl.NumberFormat("en-US", {notation: "compact", maximumSignificantDigits: 3});
const tiny = value => value !== 0 && Math.abs(value) < 0.001;  // too long for a tile otherwise
const plain = (value, tick) => tick ? short.format(value)
  : tiny(value) ? value.toExponential(2) : number(4)(value);
const whole = (value, tick) => tick ? short.format(value) : Math.round(value).toLocaleString("en-US");
const percent = (value, tick) => `${(100 * value).toFixed(tick ? 0 : 1)}%`;
// Above 100 % the figure never stands alone; the text is that of the console and the report.
const ABOVE_ONE = "/* ABOVE_ONE */";
const above = value => value >= 1.0005;
const efficiency = (value, tick) =>
  percent(value, tick) + (!tick && above(value) ? ` (${ABOVE_ONE})` : "");
const pixels = value => `${Math.round(value)} px`;
const seconds = value => value < 1 ? `${number(3)(1000 * value)} ms` : `${number(3)(value)} s`;

function duration(seconds) {
  const s = Math.round(seconds), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  if (d) return `${d} d ${h % 24} h`;
  if (h) return `${h} h ${m % 60} min`;
  return m ? `${m} min ${s % 60} s` : `${s} s`;
}

// A unit in seconds, its name, and the shortest time axis that uses it.
const TIMES = [[3600, "h", 7200], [60, "min", 120], [1, "s", 0]];

const TILES = [
  ["train", "images_per_second", "images/s", whole],
  ["train", "efficiency", "efficiency", percent],
  ["train", "loss", "training loss", plain],
  ["train", "top1", "training top-1", percent],
  ["eval", "top1", "validation top-1", percent],
  ["eval", "loss", "validation loss", plain],
  ["train", "lr", "learning rate", plain],
  ["train", "image_size", "image size", pixels],
  ["train", "global_batch_size", "global batch", whole],
  ["train", "gradient_noise_scale", "noise scale", whole],
  ["train", "data_wait_ratio", "image wait", percent],
];

const CAUSES = [
  ["lost_data_ratio", "data", "yellow"],
  ["lost_communication_ratio", "communication", "blue"],
  ["lost_straggling_ratio", "straggling", "orange"],
  ["lost_padding_ratio", "padding", "pink"],
  ["lost_other_ratio", "other", "gray"],
];

const line = (key, name, color, style = "", from = "history") => ({key, name, color, style, from});
const overTime = {
  x: "time", formatX: duration, unitX: last => TIMES.find(([, , from]) => last >= from)};
const overEpochs = {x: "epoch", formatX: value => `epoch ${number(4)(value)}`, unitX: () => [1, "epoch"]};
const CHARTS = [
  {...overTime, title: "Throughput", zero: true, format: whole,
    lines: [line("images_per_second", "images/s", "blue")]},
  {...overTime, title: "Efficiency", zero: true, top: 1, format: efficiency,
    lines: [line("efficiency", "scaling", "green"),
      line("efficiency_ceiling", "limit of the link", "gray", "dashed")]},
  {...overTime, title: "Lost time", zero: true, top: 1, stacked: true, format: percent,
    lines: CAUSES.map(([key, name, color]) => line(key, name, color))},
  {...overEpochs, title: "Loss", format: plain,
    lines: [line("loss", "training", "blue"),
      line("loss", "validation", "orange", "marked", "evals")]},
  {...overEpochs, title: "Top-1 accuracy", format: percent,
    lines: [line("top1", "training", "blue"),
      line("top1", "validation", "orange", "marked", "evals")]},
  {...overEpochs, title: "Learning rate", zero: true, format: plain,
    lines: [line("lr", "", "pink")]},
  {...overEpochs, title: "Image size", zero: true, format: whole,
    lines: [line("image_size", "pixels", "green", "step")]},
  {...overEpochs, title: "Batch", zero: true, format: whole,
    lines: [line("global_batch_size", "global batch", "blue", "step"),
      line("gradient_noise_scale", "noise scale", "pink")]},
];

const charts = CHARTS.map(spec => new Chart($("charts"), spec));
charts[2].figure.after($("lost")); // the numbers of this chart
const tiles = TILES.map(([, , name]) => {
  const tile = element("div", $("tiles"), "tile");
  const value = element("data", tile);
  element("span", tile, "", name);
  return value;
});
const causes = CAUSES.map(([, name, color]) => {
  const term = element("dt", $("causes"));
  element("i", term, "dot").style.background = `var(--${color})`;
  term.append(name);
  return element("data", element("dd", $("causes")));
});
let seen = null, selected = null, cells = [];

function showValue(place, value, format) {
  place.value = value ?? "";
  place.textContent = isNumber(value) ? format(value) : "–";
}

// Set the texts of a list, only if they changed: a screen reader would read them again.
function showList(list, items) {
  const old = [...list.children].map(item => item.textContent);
  if (items.length === old.length && items.every(([text], i) => text === old[i])) return;
  list.replaceChildren();
  for (const [text, css] of items) element("li", list, css, text);
}

function showHead({run, state, train}) {
  const ranks = run.ranks === 1 ? "1 rank" : `${run.ranks} ranks`;
  const hosts = run.hosts === 1 ? "1 host" : `${run.hosts} hosts`;
  $("name").textContent = run.name;
  $("about").textContent = `${run.model} · ${ranks} on ${hosts} · ${state}`;
  const done = train?.progress ?? 0;
  const text = train
    ? [percent(done), `epoch ${train.epoch?.toFixed(2)} of ${train.epochs}`,
      `phase ${train.phase + 1}`, `step ${whole(train.step)}`, `${duration(train.eta_s)} left`]
    : [];
  $("progress").textContent = text.join(" · ");
  $("bar").firstElementChild.style.width = `${100 * done}%`;
  $("bar").setAttribute("aria-valuenow", (100 * done).toFixed(1));
  document.title = train ? `${percent(done, true)} · ${run.name}` : run.name;
}

// A mark in the efficiency's tile, and its meaning below the tiles.
function showAbove(yes) {
  const name = tiles[TILES.findIndex(([, key]) => key === "efficiency")].nextSibling;
  name.textContent = yes ? "efficiency *" : "efficiency";
  $("above").hidden = !yes;
  $("above").textContent = yes ? `* efficiency: ${ABOVE_ONE}` : "";
}

function showLost(train) {
  $("lost").hidden = !isNumber(train?.efficiency);
  $("explanation").textContent = train?.explanation ??
    (above(train?.efficiency) ? ABOVE_ONE : "Too little is lost to name a cause.");
  CAUSES.forEach(([key], i) => showValue(causes[i], train?.[key], percent));
}

function showRanks({host, step_s, data_s, wait_s, late_s}) {
  if (cells.length !== host.length) {
    $("strip").replaceChildren();
    $("strip").className = host.length <= 16 ? "few" : "";
    cells = host.map((_, rank) => {
      const cell = element("button", $("strip"), "", `${rank}`);
      cell.addEventListener("click", () => select(rank));
      return cell;
    });
  }
  const late = cells.map((_, rank) => isNumber(late_s?.[rank]) ? late_s[rank] / step_s[rank] : 0);
  $("scale").hidden = !late_s?.some(isNumber);
  cells.forEach((cell, rank) => {
    cell.style.setProperty("--late", `${Math.min(100, 100 * late[rank] / LATE).toFixed(0)}%`);
    cell.title = `rank ${rank} on ${host[rank]}: ` + (step_s
      ? `${seconds(step_s[rank])} per step, of which ${seconds(data_s[rank])} waiting for images ` +
        `and ${seconds(wait_s[rank])} waiting for gradients` +
        (isNumber(late_s[rank]) ? `; late by ${seconds(late_s[rank])} per step` : "")
      : "no step yet");
  });
  select(selected ?? late.indexOf(Math.max(...late)), selected !== null);
}

// Show one rank below the strip: the latest one, until the user chooses another.
function select(rank, chosen = true) {
  if (chosen) selected = rank;
  cells.forEach((cell, i) => cell.setAttribute("aria-pressed", i === rank));
  $("rank").textContent = cells[rank].title;
}

function showNotes(notes) {
  $("notes").hidden = notes.length === 0;
  const list = $("notes").querySelector("ol");
  list.replaceChildren();
  for (const note of notes.toReversed()) {
    const item = element("li", list, note.text.startsWith("warning:") ? "warn" : "");
    element("time", item, "", new Date(1000 * note.time).toLocaleTimeString());
    item.append(note.text);
  }
}

function show(live) {
  seen = live;
  document.body.classList.remove("stale");
  showHead(live);
  showAbove(above(live.train?.efficiency));
  showList($("alerts"), live.alerts.map(alert => [alert.text, alert.kind]));
  TILES.forEach(([from, key, , format], i) => showValue(tiles[i], live[from]?.[key], format));
  tiles.forEach(value => { value.parentElement.hidden = value.textContent === "–"; });
  showLost(live.train);
  showRanks(live.ranks);
  showNotes(live.notes);
  for (const chart of charts) chart.update(live);
}

function showGone() {
  document.body.classList.add("stale");
  const since = seen ? ` The figures are from ${new Date(1000 * seen.time).toLocaleTimeString()}.` : "";
  showList($("alerts"), [[`The run has ended or cannot be reached.${since}`, "gone"]]);
}

let asking = false, timer;
async function refresh() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  try {
    const live = await ask();
    if (live && live.time !== seen?.time) show(live);
    else showGone();
  } finally {
    asking = false;
    timer = setTimeout(refresh, PERIOD_MS);
  }
}

async function ask() {
  try {
    const answer = await fetch(API, {cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS)});
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

document.addEventListener("visibilitychange", refresh);
refresh();
