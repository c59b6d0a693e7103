// What the endless player says. Python puts this text before that of the player.

const inS = (seconds) => `${Math.max(1, Math.round(seconds))} s`;
const inMinutes = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

const RUN_AGAIN = "If no other cell runs, it was restarted or has ended: run this cell again.";

// What is said of a kernel that gives no answer; empty while it answers. It may be busy or gone: both look the same.
function silenceText(live) {
  const silent = live.silentMs();
  if (silent < BUSY_MS) return "";
  const meanwhile = live.state === "playing" ? "the last clip goes round until it answers" : "it goes on when it answers";
  if (silent < NO_ANSWER_MS) return `The kernel is busy, or gone: ${meanwhile}.`;
  return `The kernel does not answer: ${meanwhile}. ${RUN_AGAIN}`;
}

// What goes on.
function stateText(live) {
  const { error = "", stopped = false } = live.status;
  if (live.state === "ended") return live.reason;
  if (stopped) return "The session was stopped in the kernel: run the cell again.";
  if (live.hasLostSound) return LOST_SOUND;
  if (error) {
    const meanwhile = live.line?.entries.length ? "The last one goes round" : "Nothing plays yet";
    return `No new clip could be made (${error}). ${meanwhile}; “Try again”, or another prompt.`;
  }
  const silence = silenceText(live);
  if (silence) return silence;
  if (live.state === "loading") return live.isPressed ? "It plays as soon as the kernel answers …" : "Loading …";
  if (live.state === "ready") return "Press Play. Prompts and settings may come before or after.";
  if (live.state === "paused" && live.reason) return `Paused: ${live.reason}.`;
  if (live.state === "paused") return "Paused. New prompts and settings wait until you press Play.";
  if (live.state === "playing" && live.status.holding) return "The seed is held: this clip goes round until you go on.";
  if (live.state === "playing" && live.behind) return "Falling behind: the last clip goes round until the next is made.";
  if (live.state === "waiting" && live.intro) return `Making the first clip; until then you hear ${live.intro.label}.`;
  if (live.state === "waiting") return "Making the first clip …";
  return "Playing.";
}

// What was said about the user's last action: at once that it was sent, then the kernel's answer. An error stays until
// it is dismissed or another action succeeds.
function saidText(live) {
  const pending = [...live.pending.values()].at(-1);
  const error = live.said.isError ? live.said.text : "";
  if (pending) {
    const late = live.isUnanswered() ? "Sent. The kernel has not answered yet." : pending.words;
    return error ? `${late} Before that: ${error}` : late;
  }
  return live.said.text || (live.status.hints ?? []).join(" ");
}

// What sounds now, for the line above the picture.
function nowText(live, entry) {
  if (live.state === "ended") return entry ? `Last: ${entry.clip.label}` : "";
  if (entry?.clip.isIntro) return `Now: ${entry.clip.label} (not generated)`;
  if (entry) return `Now: ${entry.clip.label}`;
  return live.intro ? `Before the first clip: ${live.intro.label}` : "";
}

// Seconds until a prompt that waits is heard, about: until its first clip is made, and what sounds before it is over.
function secondsTo(live, { make_s, clips_before }) {
  if (make_s === null || live.state !== "playing" || live.isBusy()) return null; // what a busy kernel said last is old
  const { clip_s } = live.facts;
  const entry = live.sounding();
  const left = entry && !live.status.cuts ? entry.stop - live.now() : 0;
  return Math.max(make_s, left + clips_before * clip_s);
}

const CHIP_STATES = {
  sent: "sent",
  made: "made, joins next",
  making: "making",
  next: "next",
  later: "later",
  leaving: "leaving",
  first: "first",
  held: "held",
};

function chipText(chip) {
  const seconds = chip.seconds === null ? "" : ` · ${inS(chip.seconds)}`;
  return `${CHIP_STATES[chip.state]}${seconds}`;
}

// The beginning of a text that is at most `width` pixels wide.
function cutText(pen, text, width) {
  const letters = [...text.slice(0, LONGEST_LABEL)];
  if (letters.length === [...text].length && pen.measureText(text).width <= width) return text;
  while (letters.length && pen.measureText(`${letters.join("")}…`).width > width) letters.pop();
  return letters.length ? `${letters.join("")}…` : "";
}
