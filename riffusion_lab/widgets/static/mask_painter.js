// Mark parts of a clip's picture: the mask belongs to the model, a byte for each pixel, the highest frequency first.

const UNDO_STEPS = 30;
const INSIDE = 0x78d0e040; // turquoise, as Python's TINT, half transparent; bytes from the last: red, green, blue, alpha
const EDGE = 0xffffffff;
const contextOf = (canvas) => canvas.getContext("2d", { willReadFrequently: true }); // pixels are set one by one
const HELP =
  "Keys in the picture: arrows move a box, Shift + arrows resize it, Enter adds it, Delete clears, Ctrl + Z undoes.";

function makeMask(model) {
  const past = [];

  function show(status) {
    const marked = engine.mask.reduce((sum, pixel) => sum + pixel, 0);
    engine.marked = marked;
    const share = `${((100 * marked) / engine.mask.length).toFixed(1)} % is marked`;
    engine.show("ready", status ?? (marked ? share : "Nothing is marked"));
  }

  function put(mask) {
    engine.mask = mask;
    model.send({ kind: "mask" }, undefined, [mask.slice().buffer]);
    show();
  }

  function remember() {
    past.push(engine.mask);
    past.splice(0, past.length - UNDO_STEPS);
  }

  function onMessage(message, buffers) {
    if (!/^(clip|mask)$/.test(message.kind)) return;
    if (message.kind === "clip") past.length = 0;
    else remember();
    const { bands, columns } = engine.clip;
    engine.mask = buffers.length ? new Uint8Array(buffers[0]) : new Uint8Array(bands * columns);
    show();
  }

  const engine = makeEngine(model, onMessage);
  engine.edit = (mask) => (remember(), put(mask));
  engine.undo = () => (past.length ? put(past.pop()) : engine.say("There is nothing to undo"));
  return engine;
}

// The mask with a box set to `value`; the pixels are those of Python's `box_mask`. null: the box holds none.
function withBox({ clip, mask }, { start, stop, low, high }, value) {
  const next = mask.slice();
  const half = 0.5 / clip.columns_per_s;
  let found = false;
  next.forEach((_, i) => {
    const s = (i % clip.columns) / clip.columns_per_s;
    if (!(s > start - half && s < stop - half)) return; // so that an empty field, which is NaN, marks nothing
    const hz = clip.hzOfBand(clip.bands - 1 - Math.floor(i / clip.columns));
    if (!(hz >= low && hz <= high)) return;
    next[i] = value;
    found = true;
  });
  return found ? next : null;
}

// Draw a line with a round brush into `mask`. Places and radius are in pixels of the screen, on which it is round.
function drawStroke(mask, clip, [x0, y0], [x1, y1], radius, perX, perY, value) {
  const first = (a, b, per) => Math.max(0, Math.floor((Math.min(a, b) - radius) * per));
  const last = (a, b, per, n) => Math.min(n - 1, Math.floor((Math.max(a, b) + radius) * per));
  const length = (x1 - x0) ** 2 + (y1 - y0) ** 2 || 1;
  for (let row = first(y0, y1, perY); row <= last(y0, y1, perY, clip.bands); row++) {
    for (let column = first(x0, x1, perX); column <= last(x0, x1, perX, clip.columns); column++) {
      const [x, y] = [(column + 0.5) / perX, (row + 0.5) / perY];
      const along = within(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1);
      const under = row === Math.floor(y1 * perY) && column === Math.floor(x1 * perX);
      if (!under && Math.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) > radius) continue;
      mask[row * clip.columns + column] = value;
    }
  }
}

function drawMask(canvas, clip, mask) {
  const { width, height } = canvas;
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const columns = Uint32Array.from({ length: width }, (_, x) => ((x + 0.5) * clip.columns) / width);
  const rows = Uint32Array.from({ length: height }, (_, y) => ((y + 0.5) * clip.bands) / height);
  const isMarked = (x, y) => mask[rows[y] * clip.columns + columns[x]] ?? 1; // around the picture too
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!isMarked(x, y)) continue;
      const inside = isMarked(x - 1, y) && isMarked(x + 1, y) && isMarked(x, y - 1) && isMarked(x, y + 1);
      pixels[y * width + x] = inside ? INSIDE : EDGE;
    }
  }
  contextOf(canvas).putImageData(image, 0, 0);
}

function drawOutline(canvas, shape, numbers) {
  const brush = contextOf(canvas);
  brush.lineWidth = 2;
  for (const [colour, dash] of [["#000", []], ["#fff", [5, 5]]]) {
    brush.beginPath();
    brush[shape](...numbers);
    brush.strokeStyle = colour;
    brush.setLineDash(dash);
    brush.stroke();
  }
}

function drawPainter(engine, el) {
  const canvas = make("canvas", { class: "rl-over", role: "application", tabindex: 0, "aria-label": `Picture. ${HELP}` });
  const view = makeView(engine, el, "Mask painter", canvas);
  let tool = "box";
  let box = null; // of the number fields and the keyboard: { start, stop, low, high }
  let held = null; // what the pointer is doing: { from, at } for a box, { at, mask } for a stroke
  let hover = null; // where the brush would mark

  const tools = ["Box", "Brush", "Eraser"].map((text) => {
    const name = text.toLowerCase();
    return makeButton(name, text, () => draw((tool = name)));
  });
  const size = make("input", { type: "range", min: 4, max: 120, value: 28, "data-testid": "rl-size" });
  const clear = () => engine.edit(new Uint8Array(engine.mask.length));
  const actions = [
    makeButton("undo", "↶ Undo", engine.undo, "Undo"),
    makeButton("clear", "Clear", clear),
    makeButton("invert", "Invert", () => engine.edit(engine.mask.map((pixel) => 1 - pixel))),
  ];
  const labels = ["Start (s)", "Stop (s)", "Low (Hz)", "High (Hz)"].map((text) => {
    const name = text.toLowerCase().split(" ")[0];
    const field = make("input", { type: "number", step: "any", name, "data-testid": `rl-${name}` });
    field.oninput = () => draw((box[name] = field.valueAsNumber));
    return make("label", {}, text, field);
  });
  const fields = labels.map((label) => label.querySelector("input"));
  canvas.dataset.testid = "rl-picture";
  view.bar([view.status], [view.where]);
  view.bar([...tools, make("label", {}, "Size", size)], actions);
  view.bar([...labels, makeButton("add-box", "Add box", () => mark(box, 1))]);
  view.bar([make("div", { class: "rl-dim" }, HELP)]);

  function mark(area, value) {
    const mask = withBox(engine, area, value);
    if (mask) engine.edit(mask);
    else engine.say("The box holds no pixel: make it larger");
  }

  function areaOf({ from, at }) {
    const sorted = (unit) => [from[unit], at[unit]].sort((a, b) => a - b);
    const [[start, stop], [low, high]] = [sorted("s"), sorted("hz")];
    return { start, stop, low, high };
  }

  // Of a box in seconds and hertz: left, top, width and height on the canvas
  function placeOf({ start, stop, low, high }) {
    const { duration_s, heightOf } = engine.clip;
    const [left, right] = [start, stop].map((s) => (s / duration_s) * canvas.width);
    const [bottom, top] = [low, high].map((hz) => (1 - heightOf(hz)) * canvas.height);
    return [left, top, right - left, bottom - top];
  }

  function draw() {
    const clip = view.drawCommon();
    Object.assign(el.dataset, { marked: engine.marked ?? 0, tool });
    for (const button of tools) button.setAttribute("aria-pressed", button.dataset.testid === `rl-${tool}`);
    if (!clip) return;
    box ??= boxOf(0.4, 0.6, 0.4, 0.6);
    for (const field of fields) if (!Object.is(field.valueAsNumber, box[field.name])) field.value = box[field.name];
    const scale = Math.min(devicePixelRatio, 2);
    canvas.width = Math.max(1, view.plot.clientWidth * scale);
    canvas.height = Math.max(1, view.plot.clientHeight * scale);
    drawMask(canvas, clip, held?.mask ?? engine.mask);
    const focus = el.querySelector("canvas:focus-visible, input[type=number]:focus");
    if (held?.from) drawOutline(canvas, "rect", placeOf(areaOf(held)));
    else if (focus) drawOutline(canvas, "rect", placeOf(box));
    const radius = (size.valueAsNumber / 2) * scale;
    if (hover && tool !== "box") drawOutline(canvas, "arc", [hover.x * canvas.width, hover.y * canvas.height, radius, 0, 7]);
  }

  // A box from shares of the width and the height, in numbers that are good to read
  function boxOf(left, right, bottom, top) {
    const { duration_s, low_hz, high_hz, hzAt } = engine.clip;
    const [start, stop] = [left, right].map((share) => Number((share * duration_s).toFixed(2)));
    const [low, high] = [bottom, top].map((height) => within(Math.round(hzAt(height)), low_hz, high_hz));
    return { start, stop, low, high };
  }

  function moveBox([x, y], resize) {
    const { duration_s, heightOf } = engine.clip;
    const stepX = Math.max(0.01, Number((duration_s / 50).toFixed(2))) / duration_s;
    const shift = (low, high, by) => {
      const far = within(by, resize ? low + Math.abs(by) - high : -low, 1 - high);
      return [resize ? low : low + far, high + far];
    };
    const times = shift(box.start / duration_s, box.stop / duration_s, x * stepX);
    box = boxOf(...times, ...shift(heightOf(box.low), heightOf(box.high), y / 40));
    engine.say(`Box from ${box.start} to ${box.stop} s, ${inWords(box.low)} to ${inWords(box.high)}`);
  }

  function paint(at) {
    const { clientWidth: width, clientHeight: height } = canvas;
    const [from, to] = [held.at, at].map(({ x, y }) => [x * width, y * height]);
    const { columns, bands } = engine.clip;
    const value = tool === "brush" ? 1 : 0;
    drawStroke(held.mask, engine.clip, from, to, size.valueAsNumber / 2, columns / width, bands / height, value);
  }

  canvas.onpointerdown = (event) => {
    if (!engine.clip || event.button) return;
    canvas.setPointerCapture(event.pointerId);
    const at = view.at(event);
    held = tool === "box" ? { from: at, at } : { at, mask: engine.mask.slice() };
    if (held.mask) paint(at);
    draw();
  };
  canvas.onpointermove = (event) => {
    if (!engine.clip) return;
    hover = view.at(event);
    if (held?.mask) paint(hover);
    if (held) held.at = hover;
    draw();
  };
  canvas.onpointerup = () => {
    const done = held;
    held = null;
    if (done?.mask) engine.edit(done.mask);
    else if (done?.at !== done?.from) mark(areaOf(done), 1);
  };
  canvas.onpointercancel = () => draw((held = null));
  canvas.onpointerleave = () => draw((view.where.textContent = ""), (hover = null));

  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  function onKey(event, input) {
    const { key, target, shiftKey } = event;
    const control = event.ctrlKey || event.metaKey;
    if (event.altKey || (input && (key !== "Enter" || target.matches("button")))) return false;
    if (control && key === "z") engine.undo();
    else if (control) return false;
    else if (key === "Enter" && !shiftKey) mark(box, input || tool !== "eraser" ? 1 : 0);
    else if (target !== canvas) return false;
    else if (moves[key]) moveBox(moves[key], shiftKey);
    else if (key === "Delete" || key === "Backspace") clear();
    else if (key === "Escape") canvas.onpointercancel();
    else return false;
    return true;
  }

  el.addEventListener("focusin", () => draw());
  el.addEventListener("focusout", () => draw());
  return view.start(draw, onKey);
}

export default () => makeWidget(makeMask, drawPainter);
