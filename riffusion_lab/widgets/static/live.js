// Music without an end: what is seen of it, and what the user does. The parts before it schedule, ask and speak.

const FAR_DB = -60; // the bottom of the level meter
const [FRAME_MS, STILL_FRAME_MS] = [33, 1000]; // from one picture to the next; the second if little is to move
const N_EXAMPLES = 4;

function makeSlider({ label, least, most, step, value, title = label, onChange }) {
  const range = { type: "range", min: least, max: most, step, value, "aria-label": label };
  const input = make("input", { ...range, "data-testid": `rl-${label.toLowerCase()}` });
  const shown = make("output", { class: "rl-time" }, String(value));
  input.addEventListener("input", () => {
    shown.textContent = input.value;
  });
  input.addEventListener("change", () => onChange(Number(input.value)));
  return make("label", { title }, label, input, shown);
}

function makeChoice(name, label, options, onChange, title = label) {
  const nodes = options.map(([value, text]) => make("option", { value }, text));
  const choice = make("select", { "aria-label": label, "data-testid": `rl-${name}`, title }, ...nodes);
  choice.addEventListener("change", () => onChange(choice.value));
  return make("label", { title }, label, choice);
}

// The picture of what was heard, is heard and comes, with its axes; `draw` draws it again.
function makeStrip(live, start) {
  const canvas = make("canvas", { class: "rl-strip", role: "img", "data-testid": "rl-strip" });
  const [rows, columns] = [make("div", { class: "rl-hz" }), make("div", { class: "rl-s" })];
  const level = make("div", { class: "rl-level" });
  const meter = make("div", { class: "rl-meter", title: "Level", "aria-hidden": "true" }, level);
  const plot = make("div", { class: "rl-plot" }, canvas, start);
  const frame = make("div", { class: "rl-frame" }, rows, plot, meter, columns);
  const samples = new Float32Array(2048);
  let width_px = 0; // for which the axes were drawn

  function drawAxes(width, height) {
    if (!live.facts || width === width_px) return;
    width_px = width;
    for (const axis of [rows, columns]) axis.replaceChildren();
    let below = -1;
    for (const hz of live.facts.ticks_hz ?? []) {
      const at = live.facts.heightOf(hz);
      if (hz > live.facts.high_hz || (at - below) * height < 15) continue;
      below = at;
      rows.append(make("span", { style: `bottom: ${100 * at}%` }, inWords(hz)));
    }
    for (let s = -5; s <= 2; s++) {
      const left = `left: ${100 * (NOW + s / SPAN_S)}%`;
      columns.append(make("span", { style: left }, s ? `${s > 0 ? "+" : "−"}${Math.abs(s)} s` : "now"));
    }
  }

  function drawPicture(pen, { picture }, heard, x, width, height) {
    if (picture) pen.drawImage(picture, 0, 0, heard * picture.width, picture.height, x, 0, width + 0.5, height);
  }

  // The label of a clip stays at the left edge while the clip is seen. Where it only comes round there is none.
  function drawLabel(pen, entry, x, width) {
    const room = Math.min(width, x + width) - 12;
    if (room < 30) return;
    const text = entry.clip.isIntro ? `${entry.clip.label} (not generated)` : entry.clip.label;
    const rounded = Math.round(room / 8);
    if (entry.room !== rounded) {
      entry.room = rounded;
      entry.label = cutText(pen, text, room); // takes too long to do it in every frame
    }
    pen.strokeText(entry.label, Math.max(x, 0) + 6, 15);
    pen.fillText(entry.label, Math.max(x, 0) + 6, 15);
  }

  function drawEntry(pen, entry, before, x, width, height) {
    const heard = (entry.end - entry.begin) / entry.clip.samples.length; // of a clip that is cut, a part
    drawPicture(pen, entry.clip, heard, x, width, height);
    const isNew = before?.clip.label !== entry.clip.label;
    pen.globalAlpha = isNew ? 1 : 0.5;
    pen.fillRect(x, isNew ? 0 : height - 14, isNew ? 2 : 1, isNew ? height : 14); // between prompts from top to bottom
    pen.globalAlpha = 1;
  }

  // Entries of one label that follow one another, for one label over all of them.
  function runsOf(entries) {
    const runs = [];
    for (const entry of entries) {
      const run = runs.at(-1);
      if (run && run.label === entry.clip.label) run.stop = entry.stop;
      else runs.push({ label: entry.clip.label, entry, start: entry.start, stop: entry.stop });
    }
    return runs;
  }

  // Before anything was heard: the seed clip as it would come round, its beginning at the present.
  function drawIntro(pen, width, height) {
    const clip_px = (width / SPAN_S) * live.facts.clip_s;
    for (let x = NOW * width - clip_px; x < width; x += clip_px) drawPicture(pen, live.intro, 1, x, clip_px, height);
    if (NOW * width > clip_px) drawPicture(pen, live.intro, 1, NOW * width - 2 * clip_px, clip_px, height);
  }

  // What draws in units of the screen; a canvas that gets its size anew costs time, even if it is the same.
  function penOf(width, height) {
    const scale = devicePixelRatio;
    const [columns_px, rows_px] = [Math.round(width * scale), Math.round(height * scale)];
    if (canvas.width !== columns_px) canvas.width = columns_px;
    if (canvas.height !== rows_px) canvas.height = rows_px;
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    return pen;
  }

  function draw() {
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width) return;
    drawAxes(width, height);
    const pen = penOf(width, height);
    const time = live.now();
    const at = (seconds) => NOW * width + ((seconds - time) * width) / SPAN_S;
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, width, height);
    Object.assign(pen, { font: "12px sans-serif", fillStyle: "#fff", lineWidth: 3, lineJoin: "round" });
    const entries = live.line?.entries ?? [];
    if (!entries.length && live.intro) drawIntro(pen, width, height);
    entries.forEach((entry, i) => {
      drawEntry(pen, entry, entries[i - 1], at(entry.start), at(entry.stop) - at(entry.start), height);
    });
    for (const { entry, start, stop } of runsOf(entries)) drawLabel(pen, entry, at(start), at(stop) - at(start));
    pen.fillRect(NOW * width - 1, 0, 2, height);
    drawLevel();
  }

  function drawLevel() {
    let share = 0;
    if (live.meter && live.isPlaying()) {
      live.meter.getFloatTimeDomainData(samples);
      const peak = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6);
      share = within(1 - (20 * Math.log10(peak)) / FAR_DB, 0, 1);
    }
    level.style.transform = `scaleY(${share.toFixed(3)})`; // unlike a height, it moves nothing else
    level.classList.toggle("rl-loud", share > 0.98);
  }

  return { frame, canvas, draw };
}

// A text field of one line with what adds prompts beside it: button, dice, tempo, examples.
function makeAsk(live) {
  const prompt = make("input", {
    type: "text",
    "aria-label": "Prompt",
    placeholder: "What next?",
    "data-testid": "rl-prompt",
  });
  let tempo_bpm = null;
  let thrown = N_EXAMPLES; // of the random prompts, how many were shown

  function send() {
    live.addPrompt(prompt.value, tempo_bpm);
    prompt.select(); // a refused one can be mended
  }

  function throwDice() {
    const { ideas } = live.facts;
    prompt.value = ideas[thrown++ % ideas.length];
    prompt.focus();
    prompt.select();
  }

  const add = makeButton("add", "Add", send, "Add the prompt");
  const dice = makeButton("dice", "Dice", throwDice, "Dice: a random prompt of words that the model knows; Enter adds it");
  const row = make("div", { class: "rl-ask" }, prompt, add, dice);
  const examples = make("div", { class: "rl-tools rl-examples" });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) send(); // composing: Enter picks a character
  });

  function fill({ ideas, tempi_bpm }) {
    if (tempi_bpm?.length) {
      const options = [["", "as written"], ...tempi_bpm.map((bpm) => [bpm, `${bpm} bpm`])];
      const title = "For new prompts that name no tempo: one of those whose bars fill a clip";
      const choose = (value) => {
        tempo_bpm = value ? Number(value) : null;
      };
      row.append(makeChoice("tempo", "Tempo", options, choose, title));
    }
    if (!ideas?.length) {
      dice.style.display = "none";
      return;
    }
    const texts = ideas.slice(0, N_EXAMPLES);
    examples.append(make("span", { class: "rl-dim" }, "Try"));
    texts.forEach((text, i) => {
      examples.append(makeButton(`example-${i}`, text, () => live.addPrompt(text, tempo_bpm), `Add “${text}”`));
    });
  }

  return { row, examples, prompt, fill };
}

// Buttons: play, recording, recipe, code.
function makeTools(live) {
  const play = makeButton("play", "Play", () => (live.isPlaying() ? live.pause() : live.play()));
  const record = makeButton("record", "Record", switchRecording, "Record what is heard to a file");
  const timer = make("span", { class: "rl-time rl-dim rl-timer", "data-testid": "rl-timer" });
  const keepRecipe = () => live.act({ kind: "keep" }, "Keeping the recipe.");
  const keep = makeButton("keep", "Keep recipe", keepRecipe, "Save what plays the session again");
  const file = make("input", { type: "file", accept: ".json", style: "display: none", "data-testid": "rl-file" });
  const load = makeButton("load", "Load recipe", () => file.click(), "Play a recipe that was kept once more");
  const code = makeButton("code", "Copy as code", askForCode, "Python code of a session with the same prompts");
  const retry = makeButton("retry", "Try again", () => live.act({ kind: "retry" }, "Trying again."));

  function askForCode() {
    if (live.code) live.code = ""; // put it away
    else live.act({ kind: "code" }, "Writing the code.");
    live.show();
  }

  function switchRecording() {
    if (live.isPending("record")) return; // a double click
    const isOn = Boolean(live.status.recording);
    if (isOn) live.act({ kind: "record", on: false, ...live.heardSoFar() }, "Finishing the recording.");
    else live.act({ kind: "record", on: true }, "Starting the recording.");
  }

  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    if (!chosen) return;
    live.act({ kind: "load", recipe: await chosen.text() }, `Loading ${chosen.name}.`);
    file.value = ""; // the same one may be chosen again
  });

  function showTimer() {
    const { recordsFrom, status } = live;
    record.dataset.on = String(Boolean(status.recording));
    if (!status.recording) setText(timer, "");
    else setText(timer, recordsFrom === null ? "waits" : inMinutes(Math.max(0, live.now() - recordsFrom)));
  }

  function showRetry(isNeeded) {
    if (!isNeeded && document.activeElement === retry) play.focus(); // what is hidden has no focus
    retry.style.visibility = isNeeded ? "visible" : "hidden"; // its place stays
  }

  function show() {
    const isOn = live.isPlaying() || live.isPressed;
    const pauses = isOn && live.state !== "paused";
    setFace(play, pauses ? "pause" : "play", pauses ? "Pause" : "Play");
    play.ariaLabel = play.title = play.textContent;
    record.textContent = live.status.recording ? "Stop recording" : "Record"; // its red light is the style sheet's
    record.ariaPressed = String(Boolean(live.status.recording));
    showTimer();
    showRetry(Boolean(live.status.error));
  }

  return { play, retry, nodes: [play, record, timer, keep, load, file, code], show };
}

// What was said, with what belongs to it: a button that dismisses an error, a file, code.
function makeSaid(live, retry) {
  const spoken = { class: "rl-dim", role: "status", "aria-live": "polite" };
  const [status, said] = ["status", "said"].map((name) => make("div", { "data-testid": `rl-${name}`, ...spoken }));
  const dismiss = makeButton("dismiss", "×", live.dismiss, "Dismiss the error");
  const link = make("a", { "data-testid": "rl-download", href: "#", class: "rl-link" });
  const code = make("textarea", { readonly: "", rows: 6, class: "rl-code", "aria-label": "Code", "data-testid": "rl-codetext" });
  const lines = [[status, retry], [dismiss, said, link]].map((line) => make("div", { class: "rl-saidline" }, ...line));
  const nodes = [...lines, code];
  let shownCode = "";

  link.addEventListener("click", (event) => {
    if (live.file?.url) return; // the browser downloads it
    event.preventDefault();
    live.download();
  });

  function showLink() {
    const { file } = live;
    link.style.display = file ? "" : "none";
    if (!file) return;
    const size = file.bytes > 1e6 ? `${(file.bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(file.bytes / 1e3)} kB`;
    const state = file.share === undefined ? "" : ` ${Math.round(100 * file.share)} %`;
    setText(link, file.url ? `Save ${file.name}` : `Download ${file.name} (${size})${state}`);
    if (!file.url || link.href === file.url) return;
    setAll(link, { href: file.url, download: file.name });
    if (file.isSaved) return; // another view's
    file.isSaved = true;
    link.click();
  }

  function showCode() {
    code.style.display = live.code ? "" : "none";
    if (live.code === shownCode) return;
    shownCode = live.code;
    code.value = live.code;
    if (!live.code) return;
    navigator.clipboard?.writeText(live.code).catch(() => code.select()); // where it may not be written, it is marked
  }

  function show() {
    setText(status, stateText(live));
    status.classList.toggle("rl-error", Boolean(live.status.error) && live.state !== "ended");
    setText(said, saidText(live));
    said.classList.toggle("rl-error", live.said.isError);
    if (!live.said.isError && document.activeElement === dismiss) dismiss.closest(".rl-live").querySelector("input").focus();
    dismiss.style.visibility = live.said.isError ? "visible" : "hidden";
    showLink();
    showCode();
  }

  return { nodes, show };
}

function makeSliders(live, model) {
  const { guidance_scale, strength } = live.facts;
  const change = (name, label) => (value) => live.act({ kind: "change", [name]: value }, `${label} ${value}: sent.`);
  const title =
    "How closely the prompt is followed. Models of few steps have 1 as their default; above 1, each step takes a " +
    "second pass of the network, and a clip about twice as long.";
  const guidance = { label: "Guidance", least: 1, most: 10, step: 0.5, value: guidance_scale, title };
  const sliders = [makeSlider({ ...guidance, onChange: change("guidance_scale", "Guidance") })];
  if (strength !== null) {
    const range = { label: "Strength", least: 0, most: 1, step: 0.05, value: strength };
    sliders.push(makeSlider({ ...range, onChange: change("strength", "Strength") }));
  }
  const setVolume = (value) => {
    model.set("volume", value);
    model.save_changes();
  };
  const volume = { label: "Volume", least: 0, most: 1, step: 0.05, value: model.get("volume") };
  sliders.push(makeSlider({ ...volume, onChange: setVolume }));
  return sliders;
}

// What happens to the seed while no prompt waits.
function makeSeeds(live) {
  const choose = (seed) => live.act({ kind: "seed", seed }, seed === "hold" ? "Holding the seed." : "Seeds wander.");
  const options = [["wander", "wander"], ["hold", "hold"]];
  const title = "While no prompt waits: wander to other takes of the prompt, or hold this one";
  const next = () => live.act({ kind: "seed", seed: "next" }, "Going to the next seed.");
  const button = makeButton("next-seed", "Next take", next, "Go to the next seed of the same prompt");
  return [makeChoice("seed", "Seed", options, choose, title), button];
}

function viewLive(live, el, model) {
  const start = makeButton("start", "", begin, "Play", "play");
  const now = make("div", { "data-testid": "rl-now", class: "rl-now" });
  const strip = makeStrip(live, start);
  const [ask, tools] = [makeAsk(live), makeTools(live)];
  const said = makeSaid(live, tools.retry);
  const chips = makeChips(live, () => ask.prompt.focus());
  const frame_ms = isStill() ? STILL_FRAME_MS : FRAME_MS;
  let frame = 0; // the timer of the next one
  let isFilled = false; // with what the kernel's facts tell

  start.classList.add("rl-big");

  function begin() {
    live.play();
    tools.play.focus();
  }

  // Not as often as the screen can: the model needs the processor, too. A page that is not seen draws nothing.
  function animate() {
    frame = live.isPlaying() && el.isConnected ? setTimeout(animate, frame_ms) : 0;
    if (!document.hidden) strip.draw();
  }

  // Text of one line; what does not fit is cut by the style sheet, and shown by the pointer.
  function showNow(entry) {
    const text = nowText(live, entry);
    setText(now, text);
    now.title = text.slice(0, 1000);
    strip.canvas.setAttribute("aria-label", `Spectrogram of the last seconds. ${text.slice(0, 200)}`);
  }

  // What tests and style sheets read.
  function showData(entry) {
    const { number: clip = 0, label = "" } = entry?.clip ?? {};
    const { joins = 0, repeats = 0, underruns = 0, jump = 0 } = live.line ?? {};
    const began = (entry?.start ?? 0).toFixed(3); // when what is heard did, on the clock of ctxTime
    const seen = { state: live.state, behind: live.behind, ctxTime: live.now().toFixed(3), clip, label, began };
    Object.assign(el.dataset, seen, { joins, repeats, underruns, jump: jump.toFixed(5) });
  }

  function show() {
    if (live.facts && !isFilled) addControls();
    const entry = live.sounding();
    showNow(entry);
    tools.show();
    said.show();
    chips.show();
    const isIdle = live.state === "ready" || live.state === "loading";
    start.style.visibility = isIdle && !live.isPressed ? "visible" : "hidden";
    for (const node of el.querySelectorAll("button, input, select")) node.disabled = live.state === "ended";
    showData(entry);
    if (!live.isPlaying()) strip.draw();
    else if (!frame) animate();
  }

  // Those whose values the kernel tells.
  function addControls() {
    isFilled = true;
    ask.fill(live.facts);
    bar.append(
      make("div", { class: "rl-tools" }, ...makeSeeds(live)),
      make("div", { class: "rl-tools" }, ...makeSliders(live, model)),
    );
  }

  const bar = make("div", { class: "rl-bar rl-flush" }, make("div", { class: "rl-tools" }, ...tools.nodes));
  el.classList.add("rl-widget", "rl-live");
  Object.assign(el, { role: "group", ariaLabel: "Live" });
  el.append(now, strip.frame, chips.list, ask.row, ask.examples, bar, ...said.nodes);
  keepPlainKeys(el);
  const observer = new ResizeObserver(strip.draw);
  observer.observe(el);
  let restore = null; // shows the figure for readers without a kernel again
  const giveUp = whenShown(el, () => {
    restore = hideFigure(el);
  });
  live.views.add(show);
  show();
  return () => {
    giveUp();
    restore?.();
    clearTimeout(frame);
    observer.disconnect();
    live.views.delete(show);
    // Whoever runs the cell again does not want to hear the old session as well.
    setTimeout(() => {
      if (!live.views.size && live.isPlaying()) live.pause();
    }, 1000);
  };
}

export { chipText, crossfade, loopFrom, makeLive, makeTimeline, pickNext, saidText, samplesLeft, stateText };
export default makeWidget(makeLive, viewLive);
