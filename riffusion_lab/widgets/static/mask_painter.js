// Mark parts of a clip's picture: the mask belongs to the model, a byte for each pixel, the highest frequency first.

const UNDO_STEPS = 30;
// Turquoise, as Python's TINT, half transparent, and white; bytes from the last: red, green, blue, alpha
const [INSIDE, EDGE] = [0x78d0e040, 0xffffffff];
const contextOf = (canvas) => canvas.getContext("2d", { willReadFrequently: true }); // pixels are set one by one
const HELP =
  "Keys in the picture: arrows move a box, Shift + arrows resize it, Enter adds it, Delete clears, Ctrl + Z undoes, " +
  "Ctrl + Shift + Z redoes.";

function makeMask(model) {
  let past = []; // masks to go back to, the newest last
  let future = []; // masks that were undone, the newest last

  function remember() {
    past = [...past, engine.mask].slice(-UNDO_STEPS);
    future = [];
  }

  function forget() {
    past = [];
    future = [];
  }

  function show(mask) {
    const marked = mask.reduce((sum, pixel) => sum + pixel, 0);
    Object.assign(engine, { mask, marked });
    engine.show("ready", marked ? `${((100 * marked) / mask.length).toFixed(1)} % is marked` : "Nothing is marked");
  }

  function put(mask) {
    model.send({ kind: "mask" }, undefined, [mask.slice().buffer]);
    show(mask);
  }

  const take = (bytes) => show(new Uint8Array(bytes ?? engine.clip.bands * engine.clip.columns)); // none: all zeros
  const engine = makeEngine(model, {
    clip: (_, bytes) => {
      forget();
      take(bytes);
    },
    mask: (_, bytes) => {
      remember();
      take(bytes);
    },
  });

  // Take the newest mask of one list, and keep the one that is shown in the other.
  function step(from, to, word) {
    if (!from.length) {
      engine.say(`There is nothing to ${word}`);
      return;
    }
    to.push(engine.mask);
    put(from.pop());
  }

  function edit(mask) {
    remember();
    put(mask);
  }

  const undo = () => step(past, future, "undo");
  const redo = () => step(future, past, "redo");
  return Object.assign(engine, { edit, undo, redo });
}

// Why a box of numbers marks nothing, however large the picture; "" if it may mark something.
function faultOf([start, stop, low, high]) {
  const fields = { "Start (s)": start, "Stop (s)": stop, "Low (Hz)": low, "High (Hz)": high };
  const empty = Object.keys(fields).filter((name) => Number.isNaN(fields[name]));
  if (empty.length) return `${empty.join(" and ")} must be a number`;
  if (start > stop) return `The box begins at ${start} s, behind its end at ${stop} s: exchange Start and Stop`;
  if (low > high) return `The box reaches from ${low} Hz down to ${high} Hz: exchange Low and High`;
  return "";
}

// The mask with a box set to `value`; the pixels are those of Python's `box_mask`. null: the box holds none.
function withBox({ clip, mask }, [start, stop, low, high], value) {
  const half = 0.5 / clip.columns_per_s;
  const isAt = (s) => s > start - half && s < stop - half;
  const isOf = (hz) => hz >= low && hz <= high;
  const columns = Array.from({ length: clip.columns }, (_, column) => isAt(column / clip.columns_per_s));
  const rows = Array.from({ length: clip.bands }, (_, row) => isOf(clip.hzOfBand(clip.bands - 1 - row)));
  const isInside = (i) => columns[i % clip.columns] && rows[Math.floor(i / clip.columns)];
  const isEmpty = !columns.includes(true) || !rows.includes(true);
  return isEmpty ? null : mask.map((pixel, i) => (isInside(i) ? value : pixel));
}

// Draw a line with a brush into `mask`, from one place to another. The brush is round on the screen, its radius in
// pixels of that, as are all numbers here but `row` and `column`.
function drawStroke(mask, { columns, bands }, { clientWidth, clientHeight }, from, to, radius, value) {
  const [[x0, y0], [x1, y1]] = [from, to].map(({ x, y }) => [x * clientWidth, y * clientHeight]);
  const [perX, perY] = [columns / clientWidth, bands / clientHeight];
  const first = (a, b, per) => Math.max(0, Math.floor((Math.min(a, b) - radius) * per));
  const last = (a, b, per, n) => Math.min(n - 1, Math.floor((Math.max(a, b) + radius) * per));
  const length = (x1 - x0) ** 2 + (y1 - y0) ** 2 || 1;
  for (let row = first(y0, y1, perY); row <= last(y0, y1, perY, bands); row++) {
    for (let column = first(x0, x1, perX); column <= last(x0, x1, perX, columns); column++) {
      const [x, y] = [(column + 0.5) / perX - x0, (row + 0.5) / perY - y0];
      const along = within((x * (x1 - x0) + y * (y1 - y0)) / length, 0, 1);
      const under = row === Math.floor(y1 * perY) && column === Math.floor(x1 * perX);
      const isNear = Math.hypot(x - along * (x1 - x0), y - along * (y1 - y0)) <= radius;
      if (under || isNear) mask[row * columns + column] = value;
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
  const isInside = (x, y) => isMarked(x - 1, y) && isMarked(x + 1, y) && isMarked(x, y - 1) && isMarked(x, y + 1);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) if (isMarked(x, y)) pixels[y * width + x] = isInside(x, y) ? INSIDE : EDGE;
  }
  contextOf(canvas).putImageData(image, 0, 0);
}

function drawOutline(canvas, shape, numbers) {
  const path = new Path2D();
  path[shape](...numbers);
  for (const [strokeStyle, dash] of [["#000", []], ["#fff", [5, 5]]]) {
    const brush = Object.assign(contextOf(canvas), { lineWidth: 2, strokeStyle });
    brush.setLineDash(dash);
    brush.stroke(path);
  }
}

function drawPainter(engine, el) {
  const canvas = make("canvas", { role: "application", "aria-label": `Picture. ${HELP}` });
  const view = makeView(engine, el, "Mask painter", canvas);
  let tool = "box";
  let box = null; // of the number fields and the keyboard: [start, stop, low, high], in seconds and hertz
  let held = null; // what the pointer is doing: { from, at } for a box, { at, mask } for a stroke
  let hover = null; // where the brush would mark

  const tools = [["box", "Box"], ["brush", "Brush"], ["eraser", "Eraser"]].map(([name, text]) =>
    makeButton(name, text, () => draw((tool = name)), text, name));
  const size = make("input", { type: "range", min: 4, max: 120, value: 28, "data-testid": "rl-size" });
  const clear = () => engine.edit(new Uint8Array(engine.mask.length));
  const invert = () => engine.edit(engine.mask.map((pixel) => 1 - pixel));
  const acts = { Undo: engine.undo, Redo: engine.redo, Clear: clear, Invert: invert };
  const actions = Object.entries(acts).map(([text, act]) => {
    const name = text.toLowerCase();
    return makeButton(name, text, act, text, name);
  });
  const take = (i) => draw((box[i] = fields[i].valueAsNumber));
  const fields = ["start", "stop", "low", "high"].map((name, i) =>
    make("input", { type: "number", step: "any", name, "data-testid": `rl-${name}`, oninput: () => take(i) }));
  const named = ["Start (s)", "Stop (s)", "Low (Hz)", "High (Hz)"].map((text, i) => make("label", {}, text, fields[i]));
  view.bar([view.status], [view.where]);
  view.bar([...tools, make("label", {}, "Size", size)], actions);
  view.bar([...named, makeButton("add-box", "Add box", () => mark(box, 1), "Add box", "add")]);
  view.bar([make("div", { class: "rl-dim" }, HELP)]);

  function mark(area, value) {
    const fault = faultOf(area);
    const mask = fault ? null : withBox(engine, area, value);
    if (mask) engine.edit(mask);
    else engine.say(fault || emptyOf(area));
  }

  // What to say of a box without a pixel: it lies outside of the picture, or between the middles of two pixels.
  function emptyOf([start, stop, low, high]) {
    const { duration_s, low_hz, high_hz } = engine.clip;
    if (start >= duration_s || stop <= 0) return `The box is outside of the clip, which ends at ${duration_s.toFixed(2)} s`;
    if (low > high_hz || high < low_hz) return `The box is outside of the picture: ${inWords(low_hz)} to ${inWords(high_hz)}`;
    return "The box holds no pixel: make it larger";
  }

  // A box between two places of the pointer
  const areaOf = ({ from, at }) => ["s", "hz"].flatMap((unit) => [from[unit], at[unit]].sort((a, b) => a - b));

  // Left, right, bottom and top of a box, in shares of the width and the height
  const sharesOf = ([start, stop, low, high], { duration_s, heightOf } = engine.clip) =>
    [start / duration_s, stop / duration_s, heightOf(low), heightOf(high)];

  // The box of such shares, in numbers that are good to read
  function boxOf(left, right, bottom, top) {
    const { duration_s, low_hz, high_hz, hzAt } = engine.clip;
    const times = [left, right].map((share) => Number((share * duration_s).toFixed(2)));
    return [...times, ...[bottom, top].map((height) => within(Math.round(hzAt(height)), low_hz, high_hz))];
  }

  function drawBox(area) {
    const { width, height } = canvas;
    const [left, right, bottom, top] = sharesOf(area);
    drawOutline(canvas, "rect", [left * width, (1 - top) * height, (right - left) * width, (top - bottom) * height]);
  }

  function draw() {
    const clip = view.drawCommon();
    Object.assign(el.dataset, { marked: engine.marked ?? 0, tool });
    for (const button of tools) setAll(button, { "aria-pressed": button.dataset.testid === `rl-${tool}` });
    if (!clip) return;
    box ??= boxOf(0.4, 0.6, 0.4, 0.6);
    for (const [i, field] of fields.entries()) if (!Object.is(field.valueAsNumber, box[i])) field.value = box[i];
    const scale = Math.min(devicePixelRatio, 2);
    canvas.width = Math.max(1, view.plot.clientWidth * scale);
    canvas.height = Math.max(1, view.plot.clientHeight * scale);
    drawMask(canvas, clip, held?.mask ?? engine.mask);
    if (held?.from) drawBox(areaOf(held));
    else if (el.querySelector("canvas:focus-visible, input[type=number]:focus")) drawBox(box);
    if (!hover || tool === "box") return;
    drawOutline(canvas, "arc", [hover.x * canvas.width, hover.y * canvas.height, radius() * scale, 0, 7]);
  }

  function moveBox([x, y], resize) {
    const { duration_s } = engine.clip;
    const stepX = Math.max(0.01, Number((duration_s / 50).toFixed(2))) / duration_s;
    const shift = (low, high, by) => {
      const far = within(by, resize ? low + Math.abs(by) - high : -low, 1 - high);
      return [resize ? low : low + far, high + far];
    };
    const [left, right, bottom, top] = sharesOf(box);
    box = boxOf(...shift(left, right, x * stepX), ...shift(bottom, top, y / 40));
    engine.say(`Box from ${box[0]} to ${box[1]} s, ${inWords(box[2])} to ${inWords(box[3])}`);
  }

  const radius = () => size.valueAsNumber / 2;
  const paint = (to) => drawStroke(held.mask, engine.clip, canvas, held.at, to, radius(), tool === "brush" ? 1 : 0);
  const drop = () => draw((held = null));
  const pointer = {
    down: (at) => {
      held = tool === "box" ? { from: at, at } : { at, mask: engine.mask.slice() };
      pointer.move(at);
    },
    move: (at) => {
      if (held?.mask) paint(at);
      if (held) held.at = at;
      draw((hover = at));
    },
    up: () => {
      const done = held;
      held = null;
      if (done?.mask) engine.edit(done.mask);
      else if (done?.at !== done?.from) mark(areaOf(done), 1);
    },
    cancel: drop,
    leave: () => draw((hover = null)),
  };

  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const others = { Delete: clear, Backspace: clear, Escape: drop };
  function actOf({ key, target, altKey, ctrlKey, metaKey, shiftKey }, input) {
    if (altKey || (input && (key !== "Enter" || target.matches("button")))) return null;
    if (ctrlKey || metaKey) {
      const wanted = shiftKey ? `Shift+${key.toLowerCase()}` : key.toLowerCase();
      return { z: engine.undo, y: engine.redo, "Shift+z": engine.redo }[wanted];
    }
    if (key === "Enter" && !shiftKey) return () => mark(box, input || tool !== "eraser" ? 1 : 0);
    if (target !== canvas) return null;
    return moves[key] ? () => moveBox(moves[key], shiftKey) : others[key];
  }

  for (const type of ["focusin", "focusout"]) el.addEventListener(type, () => draw());
  return view.start(draw, pointer, actOf);
}

export default () => makeWidget(makeMask, drawPainter);
