// The page of a prompt: what is chosen, and everything that is drawn from it.
for (const kernel of DATA.kernels)
  for (const name of ["shares", "remainder", "norm"]) kernel[name] = unpack(kernel[name]);
const probability = unpack(DATA.probability);
const patchedError = unpack(DATA.patched_error), aloneError = unpack(DATA.alone_error);
const [, layers, heads, length] = DATA.kernels[0].shares.shape;
const state = { target: DATA.targets.length - 1, kernel: 0, layer: Math.floor(layers / 2), head: -1 };
state.token = 0;

const quoted = text => `“${text.replaceAll("\n", "⏎").replaceAll(" ", "\u00a0")}”`;
const named = position => `${position} ${quoted(DATA.tokens[position])}`;

function share(layer, position, head = state.head) {
  const { shares } = DATA.kernels[state.kernel];
  if (head >= 0) return shares.at(state.target, layer, head, position);
  let sum = 0;
  for (let a = 0; a < heads; a++) sum += shares.at(state.target, layer, a, position);
  return sum;
}
const row = layer => DATA.tokens.map((_, position) => share(layer, position));

function role(position) {
  if (position === DATA.targets[state.target]) return "target";
  if (position > DATA.targets[state.target]) return "unseen";
  return DATA.kept[state.target][position] ? "stays" : "context";
}

function said(layer, position) {
  const what = { target: "the target", unseen: "behind the target, not seen", stays: "stays" };
  const kind = role(position);
  const where = `Token ${named(position)}, layer ${layer}`;
  if (kind !== "context") return `${where}: ${what[kind]}`;
  const parts = Array.from({ length: heads }, (_, a) => [a, share(layer, position, a)]);
  const [strongest, most] = parts.reduce((a, b) => Math.abs(b[1]) > Math.abs(a[1]) ? b : a);
  const of = state.head < 0 ? "all heads" : `head ${state.head}`;
  return `${where}: ${percent(share(layer, position))} of the update (${of}); most by head ` +
    `${strongest}, ${percent(most)}`;
}

function change(next) {
  Object.assign(state, next);
  draw();
}

function drawTokens(values, most) {
  // Changed where they stand: the focus stays, and so does what the mouse rests on.
  const focused = document.activeElement?.parentElement === $("tokens");
  DATA.tokens.forEach((_, position) => {
    const token = $("tokens").children[position], kind = role(position), value = values[position];
    const isContext = kind === "context";
    token.className = `token ${kind}${isContext && value < 0 ? " negative" : ""}`;
    token.tabIndex = position === state.token ? 0 : -1;
    token.setAttribute("aria-selected", String(position === state.token));
    token.setAttribute("aria-label", said(state.layer, position));
    token.style.backgroundColor = isContext ? colour(value, most) : "";
  });
  if (focused) $("tokens").children[state.token].focus();
}

function drawSum(values) {
  const { remainder } = DATA.kernels[state.kernel];
  const all = DATA.tokens.reduce((sum, _, position) => sum + share(state.layer, position, -1), 0);
  const left = remainder.at(state.target, state.layer), mine = values.reduce((a, b) => a + b, 0);
  const lines = [`all tokens ${percent(all)}`,
    left === 0 ? "no remainder (no norm stands in between)" : `the norm's remainder ${percent(left)}`];
  $("sum").replaceChildren(make("b", {}, `${lines.join(" + ").replace("+ no", "and no")} = ${percent(all + left)}`));
  if (state.head >= 0) $("sum").append(`; of which head ${state.head}: ${percent(mine)}`);
}

function drawFirst(values) {
  const order = values.map((value, position) => [value, position])
    .filter(([, position]) => role(position) === "context")
    .sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 8);
  bars($("first"), order.map(([value, position]) =>
    ({ name: named(position), value, text: percent(value) })));
}

function drawHeads() {
  const { shares } = DATA.kernels[state.kernel];
  bars($("heads"), Array.from({ length: heads }, (_, a) => {
    const value = shares.part(state.target, state.layer, a).reduce((x, y) => x + y, 0);
    return { name: `head ${a}`, value, text: percent(value), pressed: a === state.head,
      click: () => change({ head: a === state.head ? -1 : a }) };
  }));
}

function drawAll() {
  const { remainder } = DATA.kernels[state.kernel], columns = length + 2;
  const values = new Float32Array(layers * columns);
  for (let layer = 0; layer < layers; layer++) {
    values.set(row(layer), layer * columns);
    values[layer * columns + columns - 1] = remainder.at(state.target, layer);
  }
  matrix($("all"), {
    rows: layers, columns, values, height: Math.max(120, Math.min(420, 14 * layers)),
    label: "Share by layer and token", mark: state.layer, most: Math.min(1, largest(values)),
    told: (layer, position) => position < length ? said(layer, position)
      : `Layer ${layer}: the norm's remainder is ${percent(remainder.at(state.target, layer))}`,
    pick: (layer, position) => change({ layer, token: Math.min(position, length - 1) }),
  });
}

function drawSizes() {
  const { norm, name } = DATA.kernels[state.kernel], sizes = Array.from(norm.part(state.target));
  $("size-hint").textContent = name === "output"
    ? "Length of the change r that the target's residual stream gets, layer by layer."
    : name === "input" ? "Length of the factor, |v| |δ|: by how much the MLP's input changes, relative to itself."
      : "Frobenius norm of dW, layer by layer.";
  const rows = 24, most = largest(sizes), values = new Float32Array(rows * layers);
  sizes.forEach((size, layer) => {
    const full = Math.max(1, Math.round(rows * size / most));
    for (let r = rows - full; r < rows; r++) values[r * layers + layer] = layer === state.layer ? 1 : 0.55;
  });
  matrix($("sizes"), {
    rows, columns: layers, values, height: 130, label: "Size of the update by layer", most: 1,
    told: (_, layer) => `Layer ${layer}: size ${number(sizes[layer])}`,
    pick: (_, layer) => change({ layer }),
  });
  $("last-layer").textContent = `layer ${layers - 1}`;
}

function drawWorth() {
  const n = state.target, which = [["with the context", 0], ["alone", 1]];
  const lines = which.map(([side, s]) => make("p", {}, make("b", {}, `Next token, ${side}: `),
    DATA.likely[n][s].map((text, i) => `${quoted(text)} ${percent(probability.at(n, s, i))}`).join(", ")));
  $("worth").replaceChildren(...lines, make("p", {},
    "Alone with the patched weights of all layers, the target's logits differ from those with the " +
    `context by ${number(patchedError.at(n))}, relative; without patches by ${number(aloneError.at(n))}.`));
}

function draw() {
  const values = row(state.layer), most = largest(values.filter((_, p) => role(p) === "context"));
  choose($("target"), DATA.targets.map(named), state.target, target => change({ target }));
  choose($("kernel"), DATA.kernels.map(kernel => kernel.label), state.kernel, kernel => change({ kernel }));
  const those = [-1, ...Array(heads).keys()];
  choose($("head"), those.map(a => a < 0 ? "all heads" : `head ${a}`), those.indexOf(state.head),
    i => change({ head: those[i] }));
  $("layer").max = layers - 1;
  $("layer").value = state.layer;
  $("layer").oninput = () => change({ layer: Number($("layer").value) });
  $("layer").setAttribute("aria-valuetext", `layer ${state.layer} of 0 to ${layers - 1}`);
  $("layer-name").textContent = `${state.layer} of 0 to ${layers - 1}`;
  $("least").textContent = percent(-most);
  $("most").textContent = percent(most);
  $("of").textContent = "of the update of " + named(DATA.targets[state.target]) + ", " +
    DATA.kernels[state.kernel].label + `, layer ${state.layer}` +
    (state.head < 0 ? "" : `, head ${state.head}`);
  drawTokens(values, most);
  drawSum(values);
  drawFirst(values);
  drawHeads();
  drawAll();
  drawSizes();
  drawWorth();
}

const positionOf = event => {
  const token = event.target.closest?.(".token");
  return token ? Number(token.dataset.position) : null;
};
$("tokens").append(...DATA.tokens.map((text, position) =>
  make("span", { role: "option", "data-position": position, "data-colour": true },
    text.replaceAll("\n", "⏎\n"))));
$("tokens").addEventListener("pointermove", event => {
  if (!moved(event)) return;
  const position = positionOf(event);
  tell(position === null ? "" : said(state.layer, position));
});
$("tokens").addEventListener("pointerleave", () => tell(""));
$("tokens").addEventListener("focusin", event => {
  const position = positionOf(event);
  if (position !== null && event.target.matches(":focus-visible")) tell(said(state.layer, position));
});
$("tokens").addEventListener("focusout", () => tell(""));
$("tokens").addEventListener("click", event => {
  const position = positionOf(event);
  if (position === null) return;
  change({ token: position });
  tell(said(state.layer, position));
});
$("tokens").addEventListener("keydown", event => {
  const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -length, End: length };
  const climbs = { ArrowUp: -1, ArrowDown: 1 };
  const within = (x, count) => Math.max(0, Math.min(count - 1, x));
  if (event.key in moves) change({ token: within(state.token + moves[event.key], length) });
  else if (event.key in climbs) change({ layer: within(state.layer + climbs[event.key], layers) });
  else if (event.key === "Enter" && DATA.targets.includes(state.token))
    change({ target: DATA.targets.indexOf(state.token) });
  else return;
  event.preventDefault();
  tell(said(state.layer, state.token));
});
state.token = DATA.tokens.findIndex((_, position) => role(position) === "context");
draw();
