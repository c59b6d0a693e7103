// A player for one clip: the sound belongs to the model and plays once, however many views show it.

const context = () => (globalThis.riffusionLabAudio ??= new AudioContext({ latencyHint: "playback" }));
const SEEK_S = 0.5;

function makeSound(model) {
  let buffer = null;
  let volume = null; // a gain for all that plays
  let playing = null; // { source, fade, from: seconds into the clip, since: on the clock of `heard` }
  let rest = 0; // where it stands while it does not play

  // The clock of what comes out of the loudspeaker now
  const heard = () => context().currentTime - (context().outputLatency || context().baseLatency || 0);

  function position() {
    if (!playing) return rest;
    const seconds = playing.from + Math.max(0, heard() - playing.since);
    return playing.source.loop ? seconds % buffer.duration : Math.min(seconds, buffer.duration);
  }

  function halt() {
    if (!playing) return;
    rest = position();
    playing.fade.gain.setTargetAtTime(0, context().currentTime, 0.004); // no click
    playing.source.stop(context().currentTime + 0.03);
    playing = null;
  }

  function play() {
    if (!buffer) return;
    context().resume();
    volume ??= new GainNode(context(), { gain: model.get("volume") });
    const source = new AudioBufferSourceNode(context(), { buffer, loop: model.get("loop") });
    const fade = new GainNode(context());
    source.connect(fade).connect(volume).connect(context().destination);
    playing = { source, fade, from: rest, since: context().currentTime };
    source.start(playing.since, rest);
    source.onended = () => {
      if (playing?.source !== source) return;
      [playing, rest] = [null, 0];
      engine.show("paused", "The end");
    };
    engine.show("playing", "");
  }

  function pause() {
    if (playing) engine.show((halt(), "paused"), "");
  }

  function seek(to) {
    const resume = playing;
    halt();
    rest = within(to, 0, buffer?.duration ?? 0);
    if (resume) play();
    else engine.say("");
  }

  function set(name, value) {
    model.set(name, value);
    model.save_changes();
  }

  function save(format) {
    engine.say(`Making the ${format.toUpperCase()} file …`);
    model.send({ kind: "save", format });
  }

  function take(clip, samples) {
    halt();
    const { sample_rate: sampleRate, channels: numberOfChannels } = clip;
    const length = samples.length / numberOfChannels;
    buffer = new AudioBuffer({ length, numberOfChannels, sampleRate });
    for (let channel = 0; channel < numberOfChannels; channel++) {
      const values = samples.subarray(channel * length, (channel + 1) * length);
      buffer.copyToChannel(Float32Array.from(values, (value) => value / 32767), channel);
    }
    rest = 0;
    engine.show("ready", "");
  }

  function download({ name, type }, bytes) {
    const href = URL.createObjectURL(new Blob([bytes], { type }));
    make("a", { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
    engine.say(`Saved as ${name}`);
  }

  function onMessage(message, buffers) {
    if (message.kind === "clip") take(message, new Int16Array(buffers[0]));
    if (message.kind === "file") download(message, buffers[0]);
  }

  function onLoop() {
    if (playing) Object.assign(playing, { from: position(), since: Math.max(heard(), playing.since) });
    if (playing) playing.source.loop = model.get("loop");
    engine.say(engine.status);
  }

  function onVolume() {
    volume?.gain.setTargetAtTime(model.get("volume"), context().currentTime, 0.01);
    engine.say(engine.status);
  }

  const engine = makeEngine(model, onMessage, { "change:loop": onLoop, "change:volume": onVolume }, pause);
  const { close } = engine;
  const toggle = () => (playing ? pause() : play());
  return Object.assign(engine, { position, toggle, pause, seek, set, save, close: () => (halt(), close()) });
}

function drawPlayer(engine, el, model) {
  const playhead = make("div", { class: "rl-playhead" });
  const over = make("div", { class: "rl-over", role: "slider", tabindex: 0, "aria-label": "Position" }, playhead);
  const view = makeView(engine, el, "Player", over);
  const switchLoop = () => engine.set("loop", !model.get("loop"));
  const play = makeButton("play", "", engine.toggle);
  const loop = makeButton("loop", "⟲ Loop", switchLoop, "Loop");
  const volume = make("input", { type: "range", max: 1, step: 0.01, "data-testid": "rl-volume" });
  const time = make("span", { class: "rl-time", "data-testid": "rl-time" });
  const downloads = ["WAV", "MP3", "PNG"].map((name) => {
    const format = name.toLowerCase();
    return makeButton(`download-${format}`, `⤓ ${name}`, () => engine.save(format), `Download ${name}`);
  });
  let dragged = null; // where the playhead is held
  let waiting = 0;
  over.dataset.testid = "rl-picture";
  volume.oninput = () => engine.set("volume", volume.valueAsNumber);
  view.bar([play, loop, make("label", {}, "Volume", volume), time], downloads);
  view.bar([view.status], [view.where]);

  function draw() {
    const clip = view.drawCommon();
    const position = dragged ?? engine.position();
    const plays = engine.state === "playing";
    el.dataset.position = position.toFixed(4);
    el.dataset.ctxTime = globalThis.riffusionLabAudio?.currentTime ?? 0;
    play.textContent = plays ? "❚❚ Pause" : "▶\ufe0e Play";
    play.setAttribute("aria-label", plays ? "Pause" : "Play");
    play.title = "Space";
    loop.setAttribute("aria-pressed", model.get("loop"));
    volume.value = model.get("volume");
    if (!clip) return;
    playhead.style.left = `${(100 * position) / clip.duration_s}%`;
    time.textContent = `${position.toFixed(2)} of ${clip.duration_s.toFixed(2)} s`;
    cancelAnimationFrame(waiting);
    if (plays) waiting = requestAnimationFrame(draw);
    if (plays && dragged === null) return; // a screen reader would read every step aloud
    const said = { valuemin: 0, valuemax: clip.duration_s, valuenow: position.toFixed(2), valuetext: time.textContent };
    for (const [name, value] of Object.entries(said)) over.setAttribute(`aria-${name}`, value);
  }

  function drag(to) {
    dragged = to;
    draw();
  }

  over.onpointerdown = (event) => {
    if (!engine.clip || event.button) return;
    over.setPointerCapture(event.pointerId);
    drag(view.at(event).s);
  };
  over.onpointermove = (event) => {
    const place = engine.clip && view.at(event);
    if (dragged !== null) drag(place.s);
  };
  over.onpointerup = () => {
    const to = dragged;
    dragged = null;
    if (to !== null) engine.seek(to);
  };
  over.onpointercancel = () => drag(null);
  over.onpointerleave = () => (view.where.textContent = "");

  const louder = (step) => engine.set("volume", within(model.get("volume") + step, 0, 1));
  const keys = {
    " ": engine.toggle,
    arrowleft: () => engine.seek(engine.position() - SEEK_S),
    arrowright: () => engine.seek(engine.position() + SEEK_S),
    arrowup: () => louder(0.05),
    arrowdown: () => louder(-0.05),
    home: () => engine.seek(0),
    l: switchLoop,
  };
  function onKey(event, input) {
    const key = event.key.toLowerCase();
    const ours = !input || (event.target === volume && /^[ l]$/.test(key)); // a slider has its own arrows
    if (!ours || event.ctrlKey || event.metaKey || event.altKey || !keys[key]) return false;
    keys[key]();
    return true;
  }

  return view.start(draw, onKey, () => {
    cancelAnimationFrame(waiting);
    if (!engine.views.size) engine.pause(); // what nobody can stop must not go on
  });
}

export default () => makeWidget(makeSound, drawPlayer);
