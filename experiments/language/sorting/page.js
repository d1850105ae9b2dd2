// The walk: a list of steps, a picture for each, and beside each block its change of weights.
const S = Object.fromEntries(Object.entries(DATA.steps).map(([name, entry]) => [name, unpack(entry)]));
const W = Object.fromEntries(Object.entries(DATA.changes).map(([name, entry]) => [name, unpack(entry)]));
const [, layers, length, heads, features] = S.query.shape;
const asked = (length + 1) / 2 - 1;  // The first token behind which a letter is said.
const state = { input: 0, token: length - 1, step: 0 };

const tokenName = t => `token ${t} (${DATA.tokens[state.input][t]})`;
const feature = c => `feature ${c}`;
const headFeature = c => `head ${Math.floor(c / features)}, feature ${c % features}`;

// A step: its name, its formula, and its pictures (rows of tokens).
const perLayer = [
  ["Norm", "n = N₁(x): mean 0, mean square 1, then a learned gain and bias", "read", feature],
  ["Queries", "q = (n W_Q + b) / √16, 16 features in each of 3 heads", "query", headFeature],
  ["Keys", "k = n W_K + b", "key", headFeature],
  ["Values", "v = n W_V + b", "value", headFeature],
  ["Scores", "q · k of the row's token with the column's, a picture per head", "scores", null],
  ["Attention", "softmax of the scores over the tokens so far", "weights", null],
  ["Heads", "values, summed with the weights", "heads", headFeature],
  ["Projection", "a = heads W_O + b", "mixed", feature],
  ["Residual", "h = x + a: attention’s answer is added to the stream", "joined", feature],
  ["Norm", "z = N₂(h): what the MLP reads", "mlp_input", feature],
  ["MLP, hidden", "u = gelu(z W + b), 192 features; W is the kernel that the context changes", "hidden", feature],
  ["MLP, output", "u W′ + b′; b′ is the bias that the context changes", "mlp_output", feature],
  ["Residual", "x = h + MLP: what the block hands on", "output", feature],
];
const STEPS = [
  { block: "in", name: "Letter", formula: "a row of the table of letters", field: "letter", of: feature },
  { block: "in", name: "Position", formula: "a row of the table of positions", field: "position", of: feature, plain: true },
  { block: "in", name: "Embedding", formula: "x = letter + position", field: "residual", of: feature, layer: 0 },
  ...Array.from({ length: layers }, (_, layer) => perLayer.map(([name, formula, field, of]) =>
    ({ block: layer, name, formula, field, of, layer }))).flat(),
  { block: "out", name: "Final norm", formula: "N(x)", field: "final", of: feature },
  { block: "out", name: "Logits", formula: "N(x) times the head’s kernel: a number per letter", field: "logits", of: c => DATA.letters[c] },
  { block: "out", name: "Softmax", formula: "the probability of each letter to come next", field: "probability", of: c => DATA.letters[c] },
];

// What changes with the token, picture by picture.
let frames = [], sums = [];

function change(next, scroll = false) {
  const before = { ...state };
  Object.assign(state, next);
  if (state.input !== before.input) drawInput();
  else {
    if (state.token !== before.token) drawToken();
    drawStepName();
  }
  if (scroll) $(`step-${state.step}`).scrollIntoView({ block: "center" });
}

function drawLetters() {
  const focused = document.activeElement?.parentElement === $("letters");
  DATA.tokens[state.input].forEach((letter, t) => {
    const said = t < asked ? [] : Array.from(S.probability.part(state.input, t));
    const best = said.indexOf(Math.max(...said)), here = $("letters").children[t];
    const below = t < asked ? "" : `→${DATA.letters[best]} ${Math.round(100 * said[best])}%`;
    here.tabIndex = t === state.token ? 0 : -1;
    here.setAttribute("aria-selected", String(t === state.token));
    here.setAttribute("aria-label", `${tokenName(t)} ${below}`);
    here.replaceChildren(make("b", {}, letter), make("small", {}, below));
  });
  if (focused) $("letters").children[state.token].focus();
}

function drawStep(step, index) {
  const card = make("article", { class: "card", id: `step-${index}` });
  card.append(make("h3", {}, step.name), make("p", { class: "hint" }, step.formula));
  const place = step.plain ? [] : step.layer === undefined ? [state.input] : [state.input, step.layer];
  const pick = token => change({ token, step: index });
  if (step.of === null) {
    const row = make("div", { class: "heads" });
    for (let a = 0; a < heads; a++) {
      const host = make("div"), values = S[step.field].part(...place, a).slice();
      // What is behind a token it does not see.
      for (let t = 0; t < length; t++) for (let j = t + 1; j < length; j++) values[t * length + j] = NaN;
      frames.push(matrix(host, { rows: length, columns: length, values, height: 120,
        mark: state.token, most: largest(Array.from(values).filter(x => !Number.isNaN(x))),
        label: `${step.name}, head ${a}`, pick,
        told: (t, j) => j > t ? `${tokenName(t)} does not see ${tokenName(j)}`
          : `${step.name}, head ${a}: ${tokenName(t)} reads ${tokenName(j)}: ${number(values[t * length + j])}` }));
      row.append(make("div", {}, host, make("div", { class: "axis" }, `head ${a}`)));
    }
    card.append(row);
  } else {
    const all = S[step.field], host = make("div");
    const values = place.length ? all.part(...place) : flat(all), columns = values.length / length;
    frames.push(matrix(host, { rows: length, columns, values, height: 72, mark: state.token, pick,
      label: step.name,
      told: (t, c) => `${step.name}: ${tokenName(t)}, ${step.of(c)}: ${number(values[t * columns + c])}` }));
    card.append(host);
    if (columns === DATA.letters.length) {
      const line = make("p", { class: "sum" });
      sums.push(() => { line.textContent = DATA.letters.map((letter, c) =>
        `${letter}: ${number(values[state.token * columns + c])}`).join("   "); });
      card.append(line);
    }
  }
  return card;
}

// An array of two axes, all of it.
const flat = array => Float32Array.from({ length: array.shape[0] * array.shape[1] },
  (_, i) => array.at(Math.floor(i / array.shape[1]), i % array.shape[1]));

function strip(label, rows, names, of) {
  const columns = rows[0].length, values = Float32Array.from(rows.flatMap(row => Array.from(row)));
  const host = make("div");
  matrix(host, { rows: rows.length, columns, values, height: 16 * rows.length, label,
    told: (r, c) => `${names[r]}, ${of(c)}: ${number(values[r * columns + c])}` });
  return [make("p", { class: "strip-name" }, label), host];
}

function drawChange(layer) {
  const panel = make("aside", { class: "change", id: `change-${layer}` });
  const t = state.token, at = name => W[name].at(state.input, t, layer);
  panel.append(make("h3", {}, `What the tokens before ${tokenName(t)} amount to`));
  if (t === 0) {
    panel.append(make("p", {}, "Nothing stands before it: the weights stay as they are."));
    return panel;
  }
  const part = name => W[name].part(state.input, t, layer);
  panel.append(make("p", {}, "W → W + v ⊗ d with |dW| / |W| = ", make("b", {}, number(at("relative"))),
    ", and b′ → b′ + r: two vectors and a bias, made for this token."));
  panel.append(...strip("v: where the change reads (48 features)", [part("v")], ["v"], feature),
    ...strip("d: what it adds in front of the hidden layer (192 features)", [part("right")], ["d"], feature),
    ...strip("r: what it adds to the output bias (48 features)", [part("bias")], ["r"], feature));
  const sums = name => Array.from({ length: t }, (_, j) => {
    let sum = 0;
    for (let a = 0; a < heads; a++) sum += W[name].at(state.input, t, layer, a, j);
    return sum;
  });
  for (const [name, title, left] of [["shares", "Who wrote dW", at("remainder")], ["bias_shares", "Who wrote r", 0]]) {
    const parts = sums(name), most = largest(parts), row = make("div", { class: "wrote" });
    parts.forEach((value, j) => row.append(make("span", { class: "token", "data-colour": true,
      style: `background-color:${colour(value, most)}`, title: `${tokenName(j)}: ${percent(value)}` },
      make("b", {}, DATA.tokens[state.input][j]), make("small", {}, percent(value)))));
    const total = parts.reduce((a, b) => a + b, 0);
    panel.append(make("p", { class: "strip-name" }, `${title}: tokens ${percent(total)}` +
      (left ? ` + the norm’s remainder ${percent(left)} = ${percent(total + left)}` : ", no remainder")), row);
  }
  const names = ["with the context", "alone, changed weights", "alone, weights as they are"];
  const full = Array.from({ length: S.output.shape[3] }, (_, c) => S.output.at(state.input, layer, t, c));
  panel.append(...strip("The block’s output: with the context, alone with the changed weights, alone",
    [full, part("patched"), part("alone")], names, feature));
  panel.append(make("p", { class: "errors" }, "Error of the token alone: changed weights ",
    make("b", { class: "patched-error" }, number(at("patched_error"))), "; as they are ",
    make("b", {}, number(at("alone_error"))), "; those of another input ",
    make("b", {}, number(at("other_error"))), "."));
  return panel;
}

function drawStepName() {
  const step = STEPS[state.step], block = step.block;
  const where = Number.isInteger(block) ? `block ${block}` : block;
  $("step").value = state.step;
  $("step").setAttribute("aria-valuetext", `${where}, ${step.name}: ${step.formula}`);
  $("step-name").textContent = `${state.step + 1} of ${STEPS.length}: ${where}, ${step.name}`;
  $("back").disabled = state.step === 0;
  $("next").disabled = state.step === STEPS.length - 1;
  for (const card of document.querySelectorAll(".card")) card.removeAttribute("aria-current");
  $(`step-${state.step}`).setAttribute("aria-current", "step");
}

function drawToken() {
  drawLetters();
  for (const frame of frames) frame(state.token);
  for (const sum of sums) sum();
  for (let layer = 0; layer < layers; layer++) $(`change-${layer}`).replaceWith(drawChange(layer));
}

function drawInput() {
  choose($("input"), DATA.inputs.map(text => `${text} → ${[...text].sort().join("")}`), state.input,
    input => change({ input }));
  [frames, sums] = [[], []];
  for (const b of ["in", ...Array(layers).keys(), "out"]) {
    const cards = STEPS.map((one, index) => one.block === b ? drawStep(one, index) : null).filter(Boolean);
    const beside = Number.isInteger(b) ? [make("aside", { id: `change-${b}` })] : [];
    document.querySelector(`#block-${b} .walk`)
      .replaceChildren(make("div", { class: "steps" }, ...cards), ...beside);
  }
  drawToken();
  drawStepName();
}

$("step").max = STEPS.length - 1;
$("letters").append(...DATA.tokens[0].map((_, t) =>
  make("span", { class: `letter${t === asked ? " last" : ""}`, role: "option", "data-token": t })));
$("step").oninput = () => change({ step: Number($("step").value) }, true);
$("back").onclick = () => change({ step: Math.max(0, state.step - 1) }, true);
$("next").onclick = () => change({ step: Math.min(STEPS.length - 1, state.step + 1) }, true);
$("letters").addEventListener("click", event => {
  const letter = event.target.closest(".letter");
  if (letter) change({ token: Number(letter.dataset.token) });
});
$("letters").addEventListener("keydown", event => {
  const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -length, End: length };
  if (!(event.key in moves)) return;
  event.preventDefault();
  change({ token: Math.max(0, Math.min(length - 1, state.token + moves[event.key])) });
});
drawInput();
