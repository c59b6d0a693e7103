// What the widgets share: Python puts this text before each widget's own.

const STEPS_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600];
const within = (value, least, most) => Math.min(Math.max(value, least), most);
const bytesOf = (buffer) => buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength);
const inWords = (hz) => `${Math.round(hz).toLocaleString("en")} Hz`;

// Give a node attributes, and functions for its events: `onclick` and the like. They are no properties of the node, for
// what a function returns there has a meaning: after `false` a key that was pressed has no effect.
function setAll(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.replace(/^on/, ""), value);
    else node.setAttribute(name, value);
  }
  return node;
}

function make(tag, attributes = {}, ...children) {
  const node = setAll(document.createElement(tag), attributes);
  node.append(...children); // strings become text, never HTML
  return node;
}

// Icons of 16 × 16, drawn in the colour of the text beside them
const ICONS = {
  play: "M4 2.5v11l9-5.5z",
  pause: "M3.5 2.5h3v11h-3zM9.5 2.5h3v11h-3z",
  stop: "M3.5 3.5h9v9h-9z",
  record: "M8 3a5 5 0 1 0 0 10A5 5 0 1 0 8 3z",
  loop: "M8 3V.5L12 4 8 7.5V5a3.5 3.5 0 1 0 3.5 3.5h2A5.5 5.5 0 1 1 8 3z",
  undo: "M6 3V.5L1.5 4.5 6 8.5V6h3a2.75 2.75 0 0 1 0 5.5H5v2h4A4.75 4.75 0 0 0 9 3z",
  redo: "M10 3V.5l4.5 4-4.5 4V6H7a2.75 2.75 0 0 0 0 5.5h4v2H7A4.75 4.75 0 0 1 7 3z",
  download: "M7 1.5h2v6h3L8 11.5 4 7.5h3zM2.5 12.5h11v2h-11z",
  add: "M7 2.5h2V7h4.5v2H9v4.5H7V9H2.5V7H7z",
  close: "M3.8 2.4 8 6.6l4.2-4.2 1.4 1.4L9.4 8l4.2 4.2-1.4 1.4L8 9.4l-4.2 4.2-1.4-1.4L6.6 8 2.4 3.8z",
  skip: "M2.5 2.5v11l7.5-5.5zM11 2.5h2.5v11H11z",
  box: "M1.5 2.5h13v11h-13zM3.5 4.5v7h9v-7z",
  brush: "M13.8 1 6 8.2l1.9 1.9L15 2.2zM5.2 9.2C3 9.2 3 12 1 13.2c2 1.2 6 .8 6-2.2z",
  eraser: "M9.5 2 14 6.500 8.500 13H5L1.500 9.500zM5 8.500 3.900 9.600 5.800 11.500H7z",
  clear: "M6 1.500h4v1.500h3.500v2h-11V3H6zM3.500 6h9l-.7 8.500H4.200z",
  invert: "M8 1.500a6.500 6.500 0 1 0 0 13zM8 1.500a6.500 6.500 0 0 1 0 13v-2a4.500 4.500 0 0 0 0-9z",
  grip: "M5 2h2v2H5zM9 2h2v2H9zM5 7h2v2H5zM9 7h2v2H9zM5 12h2v2H5zM9 12h2v2H9z",
  dice: "M2 2h12v12H2zM4 4v8h8V4zM5 5h2v2H5zM9 9h2v2H9z",
};

function makeIcon(name) {
  const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  setAll(icon, { class: "rl-icon", viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" });
  setAll(path, { d: ICONS[name], fill: "currentColor", "fill-rule": "evenodd" });
  icon.append(path);
  return icon;
}

// Give a button an icon and a text; nothing happens where it has both already.
function setFace(button, icon, text) {
  if (button.dataset.icon === icon && button.textContent === text) return;
  button.dataset.icon = icon;
  button.replaceChildren(makeIcon(icon), text);
}

function makeButton(name, text, onclick, label = text, icon = "") {
  const named = { type: "button", "data-testid": `rl-${name}`, "aria-label": label, title: label };
  const button = make("button", { ...named, onclick }, text);
  if (icon) setFace(button, icon, text);
  return button;
}

// Whether the user wants little to move
const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const STILL_MS = 500; // from one picture to the next then

// Call a function once the next picture is due; returns how to give up.
function whenDue(call) {
  if (isStill()) {
    const timer = setTimeout(call, STILL_MS);
    return () => clearTimeout(timer);
  }
  const frame = requestAnimationFrame(call);
  return () => cancelAnimationFrame(frame);
}

// Set a text only where it is another: a screen reader reads aloud what is set.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Plain keys pressed in a widget are its own, and so is undoing; Ctrl + S and the like are the notebook's.
const isPlain = (event) => !event.ctrlKey && !event.metaKey && !event.altKey;
const isUndo = (event) => (event.ctrlKey || event.metaKey) && /^[zy]$/i.test(event.key);

// Jupyter Notebook hears a key before the widget does, JupyterLab behind it. Neither makes a command of what is pressed
// on an element with this attribute; it has to be the one with the focus, not one around it.
const NO_COMMANDS = "data-lm-suppress-shortcuts";
function claimKey(event) {
  const isOurs = event.target.closest?.(".rl-panel, .rl-widget");
  if (isOurs) event.target.toggleAttribute(NO_COMMANDS, isPlain(event) || isUndo(event));
}

function keepPlainKeys(el) {
  el.addEventListener("keydown", (event) => {
    if (isPlain(event)) event.stopPropagation();
  });
  if (globalThis.riffusionLabKeys) return; // the page's widgets share one listener, the first of all to be called
  globalThis.riffusionLabKeys = claimKey;
  window.addEventListener("keydown", claimKey, true);
}

// Frequencies are Python's: `half_band_hz` has them for every half band, from the lower edge of the lowest band to the
// upper edge of the highest. A height is 0 at the bottom, 1 at the top.
function addScale(clip) {
  const hz = clip.half_band_hz;
  const hzOfBand = (band) => hz[2 * band + 1];
  const last = hz.length - 1;

  function hzAt(height) {
    const place = within(height, 0, 1) * last;
    const below = Math.min(Math.floor(place), last - 1);
    return hz[below] + (place - below) * (hz[below + 1] - hz[below]);
  }

  function heightOf(wanted) {
    const above = hz.findIndex((each) => each >= wanted);
    if (above <= 0) return above < 0 ? 1 : 0;
    const [low, high] = [hz[above - 1], hz[above]];
    return (above - 1 + (wanted - low) / (high - low)) / last;
  }

  return Object.assign(clip, { hzOfBand, hzAt, heightOf });
}

// What is said of a kernel that is gone, and of one that has not answered for a while
const RESTARTED = "The kernel was restarted or has ended: run this cell again.";
const SILENT = "The kernel does not answer. It is busy, or it was restarted: then run this cell again.";
const SILENT_MS = 5_000;

// Some front ends lose the bytes that come with a message. Python then sends a figure with a plain player as text.
const LOST_BYTES = "This front end drops the bytes of sounds and pictures: here is a plain figure instead.";
const LOST_FILE = "This front end drops the bytes of files: clip.save(…) in a cell writes the file where the kernel runs.";

// The half of a widget that belongs to the model, one for all views. `answers` has what to do with Python's messages,
// by their kind, and `changes` with new values of its traits; `halt` is called when the kernel or the model is gone.
function makeEngine(model, answers, changes = {}, halt = () => {}) {
  const engine = { clip: null, plain: "", url: "", state: "loading", status: "Loading …", views: new Set() };
  engine.show = (state, status) => Object.assign(engine, { state, status }).views.forEach((draw) => draw());
  engine.say = (status) => engine.show(engine.state, status);
  const all = {
    comm_live_update: () => {
      halt(); // JupyterLab's
      if (engine.state !== "loading") engine.say(RESTARTED);
    },
    "msg:custom": (message, views) => {
      const buffers = (views ?? []).map(bytesOf);
      if (message.kind === "refused") engine.say(message.reason);
      if (message.kind === "plain") {
        engine.plain = message.html;
        engine.show("plain", LOST_BYTES);
      }
      if (message.kind === "clip" && !buffers.length) {
        halt(); // what plays is not the clip any more
        model.send({ kind: "plain" });
        return;
      }
      if (message.kind === "file" && !buffers.length) {
        engine.say(LOST_FILE);
        return;
      }
      if (message.kind === "clip") {
        URL.revokeObjectURL(engine.url);
        engine.url = URL.createObjectURL(new Blob([buffers.shift()], { type: "image/png" }));
        engine.clip = addScale(message);
      }
      answers[message.kind]?.(message, ...buffers);
    },
  };
  for (const [name, call] of Object.entries(changes)) {
    all[`change:${name}`] = () => {
      call(model.get(name));
      engine.say(engine.status);
    };
  }
  const listen = (onOrOff) => Object.entries(all).forEach(([event, call]) => model[onOrOff](event, call));
  listen("on");
  engine.close = () => {
    halt();
    listen("off");
    URL.revokeObjectURL(engine.url);
  };
  return engine;
}

// Call a function once the node is in the page; returns how to give up.
function whenShown(node, call) {
  const waiting = setInterval(() => {
    if (!node.isConnected) return;
    clearInterval(waiting);
    call();
  }, 50);
  return () => clearInterval(waiting);
}

// The figure for readers without a kernel is the output before the widget's: hide it. Returns how to undo that.
function hideFigure(el) {
  for (let node = el, height = 0; node && height < 10; node = node.parentElement, height++) {
    const before = node.previousElementSibling;
    const figure = before?.matches(".rl-static") ? before : before?.querySelector(".rl-static");
    if (figure && figure.textContent.trim() === before.textContent.trim()) {
      before.style.display = "none";
      return () => (before.style.display = "");
    }
    const other = before?.textContent.trim() || before?.querySelector("img, canvas, button, input, .rl-widget");
    if (other || node.matches(".jp-OutputArea, .output")) return null;
  }
}

// The half of a widget that each view has: title, picture with axes, status. `over` lies on the picture.
function makeView(engine, el, name, over) {
  const part = (name, attributes) => make("div", { "data-testid": `rl-${name}`, class: `rl-${name}`, ...attributes });
  const [title, rows, columns] = ["title", "hz", "s"].map((name) => part(name));
  const status = part("status", { class: "rl-dim", role: "status", "aria-live": "polite" });
  const where = part("where", { class: "rl-dim" });
  const plain = make("div", { "data-testid": "rl-plain" });
  let drawn = ""; // the figure in `plain`
  const image = make("img", { alt: "", draggable: "false" });
  const plot = make("div", { class: "rl-plot" }, image, over);
  setAll(over, { class: "rl-over", "data-testid": "rl-picture", tabindex: 0 });
  setAll(el, { role: "group" }).classList.add("rl-widget");
  el.append(title, make("div", { class: "rl-frame" }, rows, plot, columns));

  const bar = (...groups) =>
    el.append(make("div", { class: "rl-bar" }, ...groups.map((nodes) => make("div", { class: "rl-tools" }, ...nodes))));
  const tick = (axis, side, share, text) => axis.append(make("span", { style: `${side}: ${100 * share}%` }, text));

  function drawAxes({ clip } = engine) {
    for (const axis of [rows, columns]) axis.replaceChildren();
    let below = -1;
    for (const hz of clip.ticks_hz.filter((hz) => clip.low_hz <= hz && hz <= clip.high_hz)) {
      const height = clip.heightOf(hz);
      if ((height - below) * plot.clientHeight >= 15) tick(rows, "bottom", (below = height), inWords(hz));
    }
    const step = STEPS_S.find((s) => (s / clip.duration_s) * plot.clientWidth >= 64) ?? clip.duration_s;
    const tickAt = (s) => tick(columns, "left", s / clip.duration_s, `${Number(s.toFixed(3))} s`);
    for (let i = 0; i * step <= clip.duration_s; i++) tickAt(i * step);
  }

  // Show the figure in place of all else but the status. Python has escaped what users wrote in it.
  function drawPlain() {
    if (drawn === engine.plain) return;
    drawn = engine.plain;
    plain.innerHTML = engine.plain;
    el.replaceChildren(status, plain);
  }

  // Draw what all widgets have; returns the clip, once there is one.
  function drawCommon({ clip } = engine) {
    setAll(el, { "data-state": engine.state, "aria-label": clip ? `${name} ${clip.title}` : name });
    status.textContent = engine.status;
    status.classList.toggle("rl-gone", engine.status === RESTARTED);
    for (const node of el.querySelectorAll("button, input")) node.disabled = !clip;
    if (engine.plain) drawPlain();
    if (clip && image.src !== engine.url) {
      title.textContent = clip.title;
      setAll(image, { src: engine.url, alt: clip.description });
      drawAxes();
    }
    return clip;
  }

  // Where the pointer is, said and returned: shares of the width and (from the top) the height, seconds, hertz.
  function at(event) {
    const { left, top, width, height } = plot.getBoundingClientRect();
    const [x, y] = [(event.clientX - left) / width, (event.clientY - top) / height].map((share) => within(share, 0, 1));
    const [s, hz] = [x * engine.clip.duration_s, engine.clip.hzAt(1 - y)];
    where.textContent = `${s.toFixed(2)} s · ${inWords(hz)}`;
    return { x, y, s, hz };
  }

  // `pointer` has what to do when it goes down, moves, goes up, is cancelled or leaves, given the place where it is.
  // `actOf` gives what a key does; what it leaves to the browser must not reach the notebook's shortcuts either.
  function start(draw, pointer, actOf, stop = () => {}) {
    let restore = null;
    const observer = new ResizeObserver(() => {
      if (engine.clip) drawAxes();
      draw();
      if (el.isConnected) restore ??= hideFigure(el);
    });
    observer.observe(plot);
    for (const name of ["down", "move", "up", "cancel", "leave"]) {
      over.addEventListener(`pointer${name}`, (event) => {
        if (!engine.clip || (name === "down" && event.button)) return;
        if (name === "down") over.setPointerCapture(event.pointerId);
        pointer[name]?.(at(event));
        if (name === "leave") where.textContent = "";
      });
    }
    keepPlainKeys(el);
    el.addEventListener("keydown", (event) => {
      const isPress = event.target.matches("button") && /^( |Enter)$/.test(event.key);
      const act = engine.clip && actOf(event, isPress || event.target.matches("input"));
      if (!act) return;
      event.preventDefault();
      event.stopPropagation();
      act();
    });
    engine.views.add(draw);
    draw();
    return () => {
      engine.views.delete(draw);
      observer.disconnect();
      restore?.();
      stop();
    };
  }

  return { plot, bar, drawCommon, status, where, start };
}

// A widget out of its two halves; a module's default export.
function makeWidget(engineOf, viewOf) {
  let engine = null;
  function initialize({ model }) {
    engine = engineOf(model);
    model.send({ kind: "ready" });
    return engine.close;
  }
  return { initialize, render: ({ model, el }) => viewOf(engine, el, model) };
}
