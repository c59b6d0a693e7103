// What the browser does for a panel of ipywidgets: hide its figure, pick words, hear Enter, notice that the kernel is gone.

function makePanelScript(model) {
  const panel = { status: "", state: "loading", views: new Set() };
  let timer = null; // runs from a message to its answer

  function say(state, status) {
    Object.assign(panel, { state, status });
    for (const draw of panel.views) draw();
  }

  function hear() {
    clearTimeout(timer);
    timer = null;
    say("ready", "");
  }

  function isGone() {
    if (panel.state !== "loading") say("gone", RESTARTED); // before the first answer it only says that it lives
  }

  // Send a message that is answered with a "pong", by a kernel that lives and is not busy.
  panel.send = (message) => {
    model.send(message);
    if (panel.state !== "gone") timer ??= setTimeout(() => say("silent", SILENT), SILENT_MS);
  };
  const listeners = { "msg:custom": hear, comm_live_update: isGone };
  const listen = (onOrOff) => Object.entries(listeners).forEach(([event, call]) => model[onOrOff](event, call));
  listen("on");
  panel.close = () => {
    clearTimeout(timer);
    listen("off");
  };
  return panel;
}

function foundText(shown, all, wanted) {
  if (!shown) return "No word fits: the model was not taught it";
  if (wanted) return shown === 1 ? "1 word" : `${shown} words`;
  return shown < all ? `${shown} words; a search finds ${all - shown} more` : `${shown} words`;
}

// Words by their kind: one tab stop, arrow keys lead from word to word. A search also finds other names for the same.
function makeWords(groups, pick) {
  const search = make("input", { type: "search", "data-testid": "rl-search", "aria-label": "Search the words" });
  const found = make("span", { class: "rl-dim", role: "status", "aria-live": "polite", "data-testid": "rl-found" });
  const makeWord = (word) => makeButton("word", word, () => pick(word), word);

  function makeRow([kind, usual, others]) {
    const buttons = [...usual, ...others].map(makeWord);
    const row = { kind, buttons, others: new Set(buttons.slice(usual.length)) };
    const words = make("div", { class: "rl-kind-words" }, ...buttons);
    row.node = make("div", { role: "group", "aria-label": kind }, make("span", { class: "rl-kind" }, kind), words);
    return row;
  }

  const rows = groups.map(makeRow);
  const list = make("div", { class: "rl-list", role: "toolbar", "aria-label": "Words" }, ...rows.map(({ node }) => node));
  const all = rows.flatMap(({ buttons }) => buttons);
  const shown = () => all.filter((button) => !button.hidden);

  // Let Tab lead to one button only.
  function rove(to) {
    for (const button of all) button.tabIndex = button === to ? 0 : -1;
  }

  function narrow() {
    const wanted = search.value.trim().toLowerCase();
    for (const { kind, buttons, others, node } of rows) {
      const fits = (button) =>
        wanted ? `${kind} ${button.textContent}`.toLowerCase().includes(wanted) : !others.has(button);
      for (const button of buttons) button.hidden = !fits(button);
      node.hidden = buttons.every((button) => button.hidden);
    }
    const buttons = shown();
    rove(buttons[0]);
    setText(found, foundText(buttons.length, all.length, wanted));
  }

  function move(event) {
    const buttons = shown();
    const at = buttons.indexOf(document.activeElement);
    const steps = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1 };
    const to = { ...steps, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined || !isPlain(event)) return;
    event.preventDefault();
    buttons[within(to, 0, buttons.length - 1)].focus();
  }

  function fromSearch(event) {
    const [first] = shown();
    if (!first || event.isComposing) return;
    if (event.key === "Enter") pick(first.textContent);
    if (event.key === "ArrowDown") {
      event.preventDefault();
      first.focus();
    }
  }

  setAll(search, { placeholder: "Search", oninput: narrow, onkeydown: fromSearch });
  function follow({ target }) {
    if (all.includes(target)) rove(target);
  }

  setAll(list, { onkeydown: move, onfocusin: follow });
  narrow();
  return make("div", { class: "rl-words" }, make("div", { class: "rl-tools" }, search, found), list);
}

function viewPanelScript(panel, el, model) {
  const groups = model.get("groups");
  const status = make("div", { class: "rl-gone", role: "status", "aria-live": "polite", "data-testid": "rl-gone" });
  let leave = () => {};

  function draw() {
    el.dataset.state = panel.state;
    setText(status, panel.status);
  }

  // Enter in a text field: what is written there goes along, for ipywidgets may still hold it back.
  function hearEnter(event) {
    const isField = event.target.matches("input[type=text]");
    if (event.key !== "Enter" || event.isComposing || !isField || !isPlain(event)) return;
    const fields = [...event.currentTarget.querySelectorAll("input[type=text]")];
    panel.send({ kind: "enter", texts: fields.map((field) => field.value) });
  }

  // Whoever presses something expects an answer.
  function hearPress(event) {
    if (!event.target.closest("button") || el.contains(event.target)) return;
    panel.send({ kind: "ping" });
  }

  function join() {
    const box = el.parentElement.closest(".widget-vbox, .widget-box") ?? el.parentElement;
    const restore = hideFigure(box);
    box.classList.add("rl-panel");
    box.addEventListener("keydown", hearEnter, true); // before ipywidgets, which let no key pass
    box.addEventListener("click", hearPress);
    leave = () => {
      restore?.();
      box.removeEventListener("keydown", hearEnter, true);
      box.removeEventListener("click", hearPress);
    };
  }

  el.classList.add("rl-widget", "rl-panel-script");
  if (groups.length) el.append(makeWords(groups, (word) => panel.send({ kind: "word", word })));
  el.append(status);
  keepPlainKeys(el);
  const giveUp = whenShown(el, join);
  panel.views.add(draw);
  draw();
  return () => {
    giveUp();
    panel.views.delete(draw);
    leave();
  };
}

export default makeWidget(makePanelScript, viewPanelScript);
