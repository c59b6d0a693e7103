// A button that records the microphone and sends the samples, decoded, to the kernel.

async function decode(blob) {
  const context = new AudioContext();
  try {
    return await context.decodeAudioData(await blob.arrayBuffer());
  } finally {
    await context.close();
  }
}

function mono(sound) {
  const mixed = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    sound.getChannelData(channel).forEach((sample, i) => (mixed[i] += sample / sound.numberOfChannels));
  }
  return mixed;
}

// The sound as it is: browsers would else tune the microphone for speech.
const AS_IT_IS = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };

function render({ model, el }) {
  const button = document.createElement("button");
  const status = document.createElement("span");
  button.type = "button";
  button.className = "jupyter-button widget-button";
  status.setAttribute("role", "status");
  status.style.marginLeft = "1em";
  el.append(button, status);
  let recorder = null;

  function show(state, text) {
    button.textContent = state === "recording" ? "Stop" : "Record";
    button.disabled = state === "waiting";
    el.dataset.state = state;
    status.textContent = text;
  }

  async function start() {
    show("waiting", "May the browser listen?");
    const stream = await navigator.mediaDevices.getUserMedia({ audio: AS_IT_IS });
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => parts.push(event.data);
    const timer = setTimeout(stop, 1000 * model.get("longest_s"));
    recorder.onstop = async () => {
      clearTimeout(timer);
      stream.getTracks().forEach((track) => track.stop());
      show("waiting", "One moment …");
      try {
        const sound = await decode(new Blob(parts, { type: recorder.mimeType }));
        model.send({ kind: "recorded", sample_rate: sound.sampleRate }, undefined, [mono(sound).buffer]);
      } catch (error) {
        show("ready", `Nothing was recorded: ${error.message}`);
      }
    };
    recorder.start();
    show("recording", "Recording …");
  }

  function stop() {
    if (recorder?.state === "recording") recorder.stop();
  }

  function onMessage(message) {
    if (message.kind === "taken") show("ready", `${message.duration_s.toFixed(1)} s recorded`);
    if (message.kind === "refused") show("ready", message.reason);
  }

  button.onclick = () => {
    if (recorder?.state === "recording") stop();
    else start().catch((error) => show("ready", `The microphone cannot be used: ${error.message}`));
  };
  model.on("msg:custom", onMessage);
  show("ready", "");
  return () => {
    model.off("msg:custom", onMessage);
    stop();
  };
}

export default { render };
