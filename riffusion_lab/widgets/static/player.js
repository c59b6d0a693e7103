// A player for one clip: the sound belongs to the model and plays once, however many views show it.

const SEEK_S = 0.5;
const OPTIONS = { sampleRate: 44100, latencyHint: "playback" }; // the clips' rate: resampled, a loop's seam clicks
const context = () => (globalThis.riffusionLabAudio ??= new AudioContext(OPTIONS));
// The clock of what comes out of the loudspeaker now
const heard = () => context().currentTime - (context().outputLatency || context().baseLatency || 0);

function makeSound(model) {
  let [buffer, volume] = [null, null]; // the clip's sound; a gain for all that plays
  let playing = null; // { source, fade, from: seconds into the clip, since: on the clock of `heard` }
  let rest = 0; // where it stands while it does not play

  function position() {
    if (!playing) return rest;
    const seconds = playing.from + Math.max(0, heard() - playing.since);
    return playing.source.loop ? seconds % buffer.duration : Math.min(seconds, buffer.duration);
  }

  function halt(at = position()) {
    if (!playing) return;
    rest = at;
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
    source.addEventListener("ended", () => {
      if (playing?.source === source) pause(0, "The end");
    });
    engine.show("playing", "");
  }

  function pause(at, status = "") {
    if (!playing) return;
    halt(at);
    engine.show("paused", status);
  }

  function seek(to) {
    const goOn = playing ? play : () => engine.say("");
    halt();
    rest = within(to, 0, buffer?.duration ?? 0);
    goOn();
  }

  function take({ sample_rate: sampleRate, channels: numberOfChannels }, bytes) {
    halt();
    const samples = Float32Array.from(new Int16Array(bytes), (value) => value / 32767);
    const length = samples.length / numberOfChannels;
    buffer = new AudioBuffer({ length, numberOfChannels, sampleRate });
    for (let i = 0; i < numberOfChannels; i++) buffer.copyToChannel(samples.subarray(i * length, (i + 1) * length), i);
    rest = 0;
    engine.show("ready", "");
  }

  function download({ name, type }, bytes) {
    const href = URL.createObjectURL(new Blob([bytes], { type }));
    make("a", { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
    engine.say(`Saved as ${name}`);
  }

  function setLoop(on) {
    if (playing) Object.assign(playing, { from: position(), since: Math.max(heard(), playing.since) }).source.loop = on;
  }

  const setVolume = (value) => volume?.gain.setTargetAtTime(value, context().currentTime, 0.01);
  const engine = makeEngine(model, { clip: take, file: download }, { loop: setLoop, volume: setVolume }, pause);

  function set(name, value) {
    model.set(name, value);
    model.save_changes();
  }

  function save(format, name) {
    engine.say(`Making the ${name} file …`);
    model.send({ kind: "save", format });
  }

  return Object.assign(engine, { position, pause, seek, set, save, toggle: () => (playing ? pause() : play()) });
}

function drawPlayer(engine, el, model) {
  const playhead = make("div", { class: "rl-playhead" });
  const over = make("div", { role: "slider", "aria-label": "Position" }, playhead);
  const view = makeView(engine, el, "Player", over);
  const switchLoop = () => engine.set("loop", !model.get("loop"));
  const play = makeButton("play", "", engine.toggle);
  const loop = makeButton("loop", "Loop", switchLoop, "Loop", "loop");
  const setVolume = () => engine.set("volume", volume.valueAsNumber);
  const volume = make("input", { type: "range", max: 1, step: 0.01, "data-testid": "rl-volume", oninput: setVolume });
  const time = make("span", { class: "rl-time", "data-testid": "rl-time" });
  const downloads = [["wav", "WAV"], ["mp3", "MP3"], ["png", "PNG"]].map(([format, name]) =>
    makeButton(`download-${format}`, name, () => engine.save(format, name), `Download ${name}`, "download"));
  let dragged = null; // where the playhead is held
  let giveUp = () => {}; // drawing the next picture
  view.bar([play, loop, make("label", {}, "Volume", volume), time], downloads);
  view.bar([view.status], [view.where]);

  function draw() {
    const clip = view.drawCommon();
    const at = dragged ?? engine.position();
    const plays = engine.state === "playing";
    setAll(el, { "data-position": at.toFixed(4), "data-ctx-time": globalThis.riffusionLabAudio?.currentTime ?? 0 });
    setFace(play, plays ? "pause" : "play", plays ? "Pause" : "Play");
    setAll(play, { "aria-label": plays ? "Pause" : "Play", title: "Space" });
    setAll(loop, { "aria-pressed": model.get("loop") });
    volume.value = model.get("volume");
    if (!clip) return;
    playhead.style.left = `${(100 * at) / clip.duration_s}%`;
    time.textContent = `${at.toFixed(2)} of ${clip.duration_s.toFixed(2)} s`;
    giveUp();
    if (plays) giveUp = whenDue(draw);
    if (plays && dragged === null) return; // a screen reader would read every step aloud
    setAll(over, { "aria-valuemin": 0, "aria-valuemax": clip.duration_s });
    setAll(over, { "aria-valuenow": at.toFixed(2), "aria-valuetext": time.textContent });
  }

  const drag = (to) => draw((dragged = to));
  const pointer = {
    down: ({ s }) => drag(s),
    move: ({ s }) => {
      if (dragged !== null) drag(s);
    },
    up: ({ s }) => {
      if (dragged === null) return;
      dragged = null;
      engine.seek(s);
    },
    cancel: () => drag(null),
  };

  const seekBy = (step) => engine.seek(engine.position() + step);
  const louder = (step) => engine.set("volume", within(model.get("volume") + step, 0, 1));
  const keys = {
    " ": engine.toggle, l: switchLoop, home: () => engine.seek(0),
    arrowleft: () => seekBy(-SEEK_S), arrowright: () => seekBy(SEEK_S),
    arrowup: () => louder(0.05), arrowdown: () => louder(-0.05),
  };
  function actOf({ key, target, ctrlKey, metaKey, altKey }, input) {
    const ours = !input || (target === volume && /^[ l]$/i.test(key)); // a slider has its own arrows
    return ours && !ctrlKey && !metaKey && !altKey && keys[key.toLowerCase()];
  }

  return view.start(draw, pointer, actOf, () => {
    giveUp();
    if (!engine.views.size) engine.pause(); // what nobody can stop must not go on
  });
}

export default () => makeWidget(makeSound, drawPlayer);
