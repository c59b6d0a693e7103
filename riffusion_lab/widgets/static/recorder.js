// A button that records the microphone and sends the samples, decoded, to the kernel.

// The sound as it is: browsers would else tune the microphone for speech.
const AS_IT_IS = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };

function mono(sound) {
  const channels = Array.from({ length: sound.numberOfChannels }, (_, channel) => sound.getChannelData(channel));
  return channels[0].map((_, i) => channels.reduce((sum, samples) => sum + samples[i] / channels.length, 0));
}

function render({ model, el }) {
  const button = make("button", { type: "button", onclick: press });
  const status = make("span", { role: "status", class: "rl-dim", "aria-live": "polite" });
  el.append(make("div", { class: "rl-tools" }, button, status));
  el.classList.add("rl-widget", "rl-recorder");
  setAll(el, { role: "group", "aria-label": "Recorder" });
  keepPlainKeys(el);
  const giveUp = whenShown(el, () => {
    restore = hideFigure(el);
  });
  let restore = null;
  let recorder = null;
  let lives = false; // the kernel has answered
  let silent = null; // runs from a recording to the kernel's answer

  function show(state, text) {
    const isWaiting = state === "waiting";
    el.dataset.state = state;
    if (state === "recording") setFace(button, "stop", "Stop");
    else setFace(button, "record", "Record");
    button.ariaDisabled = String(isWaiting); // a button that is really disabled loses the focus
    status.textContent = text;
    status.classList.toggle("rl-gone", text === RESTARTED);
  }

  async function start() {
    show("waiting", "May the browser listen?");
    const stream = await navigator.mediaDevices.getUserMedia({ audio: AS_IT_IS });
    recorder = new MediaRecorder(stream);
    const parts = [];
    const timer = setTimeout(stop, 1000 * model.get("longest_s"));
    recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
    recorder.addEventListener("stop", () => {
      clearTimeout(timer);
      stream.getTracks().forEach((track) => track.stop());
      show("waiting", "One moment …");
      const recorded = new Blob(parts, { type: recorder.mimeType });
      send(recorded).catch((error) => show("ready", `Nothing was recorded: ${error.message}`));
    });
    recorder.start();
    show("recording", "Recording …");
  }

  async function send(recorded) {
    const [bytes, context] = [await recorded.arrayBuffer(), new AudioContext()];
    const sound = await context.decodeAudioData(bytes).finally(() => context.close());
    silent = setTimeout(() => show("ready", SILENT), SILENT_MS);
    model.send({ kind: "recorded", sample_rate: sound.sampleRate }, undefined, [mono(sound).buffer]);
  }

  const isRecording = () => recorder?.state === "recording";

  function stop() {
    if (isRecording()) recorder.stop();
  }

  function press() {
    if (el.dataset.state === "waiting") return;
    if (isRecording()) stop();
    else start().catch((error) => show("ready", `The microphone cannot be used: ${error.message}`));
  }

  function onMessage({ kind, reason, duration_s }) {
    lives = true;
    if (kind === "ready") return;
    clearTimeout(silent);
    show("ready", reason ?? `${duration_s.toFixed(1)} s recorded`);
  }

  function onLiveUpdate() {
    if (lives) show("ready", RESTARTED); // before the first answer it only says that it lives
  }

  model.on("msg:custom", onMessage);
  model.on("comm_live_update", onLiveUpdate);
  model.send({ kind: "ready" });
  show("ready", "");
  return () => {
    model.off("msg:custom", onMessage);
    model.off("comm_live_update", onLiveUpdate);
    clearTimeout(silent);
    giveUp();
    restore?.();
    stop();
  };
}

export default { render };
