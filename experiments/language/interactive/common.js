// What both pages share: numbers as the library gave them, how they are written and coloured, and
// a matrix that says its numbers to the mouse, to a finger and to the arrow keys.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);

function unpack(entry) {
  const bytes = Uint8Array.from(atob(entry.f32), c => c.charCodeAt(0));
  const view = new DataView(bytes.buffer), values = new Float32Array(bytes.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = view.getFloat32(4 * i, true);
  const steps = entry.shape.map((_, axis) => entry.shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  const offset = index => index.reduce((sum, i, axis) => sum + i * steps[axis], 0);
  return {
    shape: entry.shape,
    at: (...index) => values[offset(index)],
    // The part of an array behind its first axes, flat.
    part: (...index) => values.subarray(offset(index), offset(index) + steps[index.length - 1]),
  };
}

// As icl_jax.report.page.number writes it.
function number(x) {
  if (x === null || Number.isNaN(x)) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size < 1e-3 || size >= 1e4)
    return x.toExponential(1).replace(/e([+-])(\d)$/, "e$10$2").replace("-", "−").replace("e−", "e-");
  return (size >= 100 ? x.toFixed(0) : x.toPrecision(3)).replace("-", "−");
}

function percent(x) {
  const text = (100 * x).toFixed(1).replace("-", "−");
  return (text === "−0.0" ? "0.0" : text) + " %";
}

// The colour follows the reader's dark mode by itself: its variables do.
function colour(x, most) {
  const strength = most > 0 ? Math.min(1, Math.abs(x) / most) : 0;
  return `rgb(var(--${x < 0 ? "minus" : "plus"}) / ${(0.75 * strength).toFixed(3)})`;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function tell(text) {
  $("told").hidden = !text;
  $("told").textContent = text;
}

// Whether the mouse has moved: a page that changes below one that rests is no answer to it.
const rest = { x: NaN, y: NaN };
function moved(event) {
  const same = event.clientX === rest.x && event.clientY === rest.y;
  [rest.x, rest.y] = [event.clientX, event.clientY];
  return !same;
}

function largest(values) {
  let most = 0;
  for (const x of values) if (Math.abs(x) > most) most = Math.abs(x);
  return most;
}

function choose(select, names, chosen, changed) {
  select.replaceChildren(...names.map((name, i) =>
    make("option", { value: i, selected: i === chosen }, name)));
  select.onchange = () => changed(Number(select.value));
}

// Bars around zero; an entry has a name, a value, how it is written, and perhaps what a click does.
function bars(host, entries, most = largest(entries.map(entry => entry.value))) {
  const low = Math.min(0, ...entries.map(entry => entry.value)) / (most || 1);
  const high = Math.max(0, ...entries.map(entry => entry.value)) / (most || 1);
  const span = high - low || 1;
  const buttons = () => [...host.querySelectorAll("button")];
  const focused = buttons().indexOf(document.activeElement);
  host.classList.add("bars");
  host.style.setProperty("--zero", `${(-100 * low / span).toFixed(2)}%`);
  host.replaceChildren(...entries.flatMap(({ name, value, text, click, pressed }) => {
    const share = value / (most || 1), left = (Math.min(0, share) - low) / span;
    const bar = make("i", { style: `left:${100 * left}%;width:${100 * Math.abs(share) / span}%;` +
      `background:rgb(var(--${value < 0 ? "minus" : "plus"}) / 0.8)` });
    const label = click
      ? make("button", { type: "button", "aria-pressed": String(Boolean(pressed)), onclick: click }, name)
      : make("span", { class: "name", title: name }, name);
    return [label, make("span", { class: "track", "aria-hidden": "true" }, bar),
      make("span", { class: "number" }, text)];
  }));
  buttons()[focused]?.focus();
}

// rows x columns of values as an SVG. told(row, column) says a cell; pick(row, column) is a click.
// Returns a function that frames another row.
function matrix(host, { rows, columns, values, label, told, pick, mark, height, most }) {
  const scale = most || largest(values);
  const cells = [];
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
    const x = values[r * columns + c];
    if (!x && !Number.isNaN(x)) continue;
    const fill = Number.isNaN(x) ? "rgb(128 128 128 / 0.25)" : colour(x, scale);
    cells.push(`<rect x="${c}" y="${r}" width="1" height="1" style="fill:${fill}"/>`);
  }
  const box = (r, c, w, h, name) => `<rect class="${name}" x="${c}" y="${r}" width="${w}" height="${h}"` +
    ' style="fill:none;stroke:rgb(var(--hold));stroke-width:1.5;vector-effect:non-scaling-stroke"/>';
  const framed = row => row === undefined ? "" : box(row, 0, columns, 1, "mark");
  host.className = "matrix";
  host.innerHTML = `<svg viewBox="0 0 ${columns} ${rows}" preserveAspectRatio="none" ` +
    `shape-rendering="crispEdges" style="height:${height}px" aria-hidden="true">` +
    `${cells.join("")}<g class="marks">${framed(mark)}</g><g class="cursor"></g></svg>`;
  const drawn = host.firstElementChild, cursor = drawn.querySelector(".cursor");
  // Drawn again, it goes on where the keys were.
  let [row, column] = host.place ?? [mark ?? 0, 0];
  const show = () => { host.place = [row, column]; cursor.innerHTML = box(row, column, 1, 1, "at"); tell(told(row, column)); };
  const at = event => {
    const area = drawn.getBoundingClientRect();
    const clip = (x, count) => Math.max(0, Math.min(count - 1, Math.floor(x * count)));
    row = clip((event.clientY - area.top) / area.height, rows);
    column = clip((event.clientX - area.left) / area.width, columns);
    show();
  };
  host.tabIndex = 0;
  host.setAttribute("role", "application");
  host.setAttribute("aria-roledescription", "matrix");
  host.setAttribute("aria-label", `${label}. Arrow keys move, Enter picks.`);
  host.onpointermove = event => { if (moved(event)) at(event); };
  host.onpointerleave = () => { cursor.innerHTML = ""; tell(""); };
  host.onfocus = () => { if (host.matches(":focus-visible")) show(); };
  host.onblur = () => { cursor.innerHTML = ""; tell(""); };
  host.onclick = event => { at(event); if (pick) pick(row, column); };
  host.onkeydown = event => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step) {
      row = Math.max(0, Math.min(rows - 1, row + step[0]));
      column = Math.max(0, Math.min(columns - 1, column + step[1]));
      show();
    } else if (event.key === "Enter" && pick) pick(row, column);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return next => { drawn.querySelector(".marks").innerHTML = framed(next); row = next; };
}
