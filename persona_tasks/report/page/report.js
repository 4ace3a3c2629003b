"use strict";
// Texts are set with textContent only: nothing that a model said is ever parsed as markup.
(async () => {
  const $ = (selector) => document.querySelector(selector);
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const svg = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };

  const { models, personas, dialogues } = await unpack($("#data").textContent);
  const turns = Math.max(1, ...dialogues.map((dialogue) => dialogue.turns.length));
  const state = { scenario: "all", text: "", metric: "prompt_to_line", first: "", drift: "", model: "" };
  let shown = []; // numbers of the dialogues that pass the filters, in the order of the rows
  let rows = []; // row of each dialogue, by its number

  // ------------------------------------------------------------------------------------------------- heat map

  // One code for each turn: c consistent, p partly (questions), x contradicts, u unparsed, "" nothing was judged.
  const codes = (dialogue) => {
    if (state.metric !== "qa") return dialogue.v[state.metric].map((verdict) => (verdict ? verdict[0] : ""));
    const cells = Array.from({ length: dialogue.turns.length }, () => "");
    dialogue.turns.forEach((_, place) => {
      const asked = dialogue.q.filter(([turn, , , code, , persona]) => persona && code && turn === place + 1);
      const [right, wrong] = ["c", "x"].map((code) => asked.filter((answer) => answer[3] === code).length);
      if (asked.length) cells[place] = right && wrong ? "p" : right ? "c" : wrong ? "x" : "u";
    });
    return cells;
  };

  const strip = (cells) => {
    const paths = { c: "", x: "", u: "" };
    const cell = (x, y, height) => `M${x + 0.04} ${y}h.92v${height}h-.92z`;
    cells.forEach((code, place) => {
      if (code === "p") { paths.c += cell(place, 0, 0.5); paths.x += cell(place, 0.5, 0.5); }
      else if (code) paths[code] += code === "u" ? cell(place, 0.35, 0.3) : cell(place, 0, 1);
    });
    const drawing = svg("svg", { class: "strip", viewBox: `0 0 ${turns} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const [code, d] of Object.entries(paths)) if (d) drawing.append(svg("path", { class: code, d }));
    return drawing;
  };

  const short = (id) => (id.length > 24 ? `…${id.slice(-22)}` : id); // the end tells them apart
  const rowOf = (dialogue, number) => {
    const first = dialogue.first[state.metric];
    const label = first === null ? "no contradiction" : `first contradiction at turn ${first}`;
    const button = el("button", { type: "button", class: "row", "data-number": number, tabindex: "-1" },
      el("span", { class: "who", title: dialogue.id }, short(dialogue.id)), strip(codes(dialogue)),
      el("span", { class: "when", "aria-hidden": "true" }, first === null ? "–" : String(first)));
    button.setAttribute("aria-label", `${dialogue.id}, ${models[dialogue.m]}: ${label}`);
    return el("li", {}, button);
  };

  const build = () => {
    rows = dialogues.map(rowOf);
    const last = (number) => dialogues[number].first[state.metric] ?? Infinity;
    const heat = $("#heat");
    heat.replaceChildren(...models.map((model, m) => {
      const numbers = dialogues.map((_, number) => number).filter((number) => dialogues[number].m === m);
      numbers.sort((a, b) => (last(a) === last(b) ? a - b : last(b) - last(a)));
      const ticks = el("div", {}, ...Array.from({ length: turns }, (_, place) =>
        el("span", {}, turns <= 10 || place === 0 || (place + 1) % 5 === 0 ? String(place + 1) : "")));
      return el("section", { "data-model": m }, el("h3", {}, model, el("span", { class: "unseen" }, ", dialogues")),
        el("div", { class: "axis", "aria-hidden": "true" }, ticks, el("span", {}, "first")),
        el("ol", {}, ...numbers.map((number) => rows[number])));
    }));
    const longest = Math.max(0, ...dialogues.map((dialogue) => dialogue.first[state.metric] ?? 0));
    const chosen = $("#first").value;
    $("#first").replaceChildren(el("option", { value: "" }, "at any turn, or never"), el("option", { value: "never" }, "never"),
      ...Array.from({ length: longest }, (_, place) => el("option", { value: place + 1 }, `at turn ${place + 1}`)));
    $("#first").value = [...$("#first").options].some((option) => option.value === chosen) ? chosen : "";
    state.first = $("#first").value;
    filter();
  };

  // -------------------------------------------------------------------------------------------------- filters

  const words = (dialogue) => {
    dialogue.words ??= [dialogue.id, personas[dialogue.p].text, ...dialogue.turns.flat(),
      ...Object.values(dialogue.v).flat().filter(Boolean).map((verdict) => verdict[1]),
      ...dialogue.q.map((answer) => answer[2])].join("\n").toLowerCase();
    return dialogue.words;
  };
  // What kinds of drift a dialogue shows: as the judge names them, and a line that contradicts an earlier one.
  const drifts = (dialogue) => {
    dialogue.drifts ??= new Set([...dialogue.v.prompt_to_line.map((verdict) => verdict && verdict[0] === "x" && verdict[3]).filter(Boolean),
      ...(dialogue.v.line_to_line.some((verdict) => verdict && verdict[0] === "x") ? ["self_contradiction"] : [])]);
    return dialogue.drifts;
  };
  const spoken = (name) => name.replaceAll("_", " ");
  const passes = (dialogue) => {
    const first = dialogue.first[state.metric];
    return (state.scenario === "all" || dialogue.s === state.scenario)
      && (state.model === "" || dialogue.m === Number(state.model))
      && (state.first === "" || (state.first === "never" ? first === null : first === Number(state.first)))
      && (state.drift === "" || drifts(dialogue).has(state.drift))
      && (state.text === "" || words(dialogue).includes(state.text));
  };
  const filter = () => {
    const passing = new Set();
    dialogues.forEach((dialogue, number) => {
      const pass = passes(dialogue);
      rows[number].hidden = !pass;
      if (pass) passing.add(number);
    });
    shown = [...$("#heat").querySelectorAll("button.row")].map((row) => Number(row.dataset.number))
      .filter((number) => passing.has(number));
    $("#heat").querySelectorAll("section").forEach((section) => {
      section.hidden = !shown.some((number) => dialogues[number].m === Number(section.dataset.model));
    });
    $("#count").textContent = shown.length === dialogues.length
      ? `${shown.length} dialogue${shown.length === 1 ? "" : "s"}` : `${shown.length} of ${dialogues.length} dialogues`;
    focusable(shown[0]);
  };
  const showScenario = () => document.querySelectorAll(".scenario").forEach((section) => {
    section.hidden = section.dataset.scenario !== state.scenario;
  });

  // ------------------------------------------------------------- keyboard: one tab stop, arrows go through the rows

  let current = null;
  const button = (number) => rows[number].firstChild;
  const focusable = (number) => {
    if (current !== null && rows[current]) button(current).tabIndex = -1;
    current = number ?? null;
    if (current !== null) button(current).tabIndex = 0;
  };
  $("#heat").addEventListener("keydown", (event) => {
    const place = shown.indexOf(Number(event.target.dataset?.number));
    const to = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: shown.length - 1 }[event.key];
    if (place < 0 || to === undefined || shown[to] === undefined) return;
    event.preventDefault();
    focusable(shown[to]);
    button(shown[to]).focus();
  });
  $("#heat").addEventListener("click", (event) => {
    const row = event.target.closest("button.row");
    if (!row) return;
    const box = row.querySelector(".strip").getBoundingClientRect();
    const part = (event.clientX - box.left) / box.width;
    open(Number(row.dataset.number), event.detail && part >= 0 && part < 1 ? Math.floor(part * turns) + 1 : null);
  });

  // --------------------------------------------------------------------------------------------------- reader

  const reader = $("#reader");
  const MARK = { c: "✓", x: "✗", u: "?" };
  const score = (value) => (value === null ? "–" : value.toFixed(2));
  const told = (code, text, why) => {
    const line = el("p", { class: `verdict ${code}` }, el("b", {}, `${MARK[code]} `), why ? ` ${why}` : "");
    line.firstChild.append(...text);
    return line;
  };
  const persona = ([code, why, , drift]) => told(code,
    [{ c: "fits the persona", x: `contradicts the persona${drift ? `: ${spoken(drift)}` : ""}`, u: "against the persona: not readable" }[code]], why);
  const before = ([code, why, conflicts]) => {
    if (code === "c") return told(code, ["fits the lines before"], why);
    if (code === "u") return told(code, ["against the lines before: not readable"], why);
    const links = conflicts.flatMap((turn, place) => [place ? ", " : " ", el("a", { href: `#turn-${turn}` }, `line ${turn}`)]);
    return told(code, ["contradicts", ...(links.length ? links : [" an earlier line"])], why);
  };
  const questions = (dialogue, after, withPersona) => {
    const asked = dialogue.q.filter(([turn, , , , , persona]) => turn === after && persona === withPersona);
    if (!asked.length) return [];
    const count = (code) => asked.filter((answer) => answer[3] === code).length;
    const title = withPersona ? (after ? `Questions after turn ${after}` : "Questions before the first turn") : "Questions without persona";
    const unread = count("u") ? `, ${count("u")} not readable` : "";
    return [el("details", { class: "questions" },
      el("summary", {}, `${title}: ${count("c")} of ${asked.length} right${unread}`),
      el("ul", {}, ...asked.map(([, number, answer, code, why]) => {
        const [question, right] = personas[dialogue.p].questions[number];
        const item = el("li", {}, el("div", {}, question), el("q", {}, answer || "(nothing)"));
        const options = { c: "right", x: right ? `wrong, it is: ${right}` : "wrong", u: right ? `not readable; it is: ${right}` : "not readable" };
        if (code) item.append(told(code, [options[code]], why));
        return item;
      })))];
  };
  const turnOf = (dialogue, [partner, line], place) => {
    const [against, earlier] = ["prompt_to_line", "line_to_line"].map((metric) => dialogue.v[metric][place]);
    const item = el("li", { class: "turn", id: `turn-${place + 1}`, tabindex: "-1" });
    if (partner) item.append(el("p", { class: "partner" }, el("span", { class: "unseen" }, "Partner: "), partner));
    const worst = [against, earlier].some((verdict) => verdict && verdict[0] === "x") ? "x" : (against ?? earlier ?? [""])[0];
    const box = el("div", { class: `line ${worst}` }, el("span", { class: "number" }, String(place + 1)),
      el("p", line.length > 2000 ? { class: "said", tabindex: "0" } : { class: "said" }, line || "(nothing)")); // long: it scrolls
    if (against) box.append(persona(against));
    if (earlier) box.append(before(earlier));
    item.append(box, ...questions(dialogue, place + 1, true));
    return item;
  };
  const aside = (dialogue) => {
    const about = personas[dialogue.p];
    const facts = { seed: dialogue.seed, partner: dialogue.partner, judge: dialogue.judge, ended: dialogue.ended };
    const numbers = [...Object.entries(dialogue.score).map(([name, value]) => [name, score(value)]),
      ...Object.entries(dialogue.monitors).map(([name, value]) => [name, value.toFixed(2)]),
      ...Object.entries(facts).filter(([, value]) => value !== null && value !== "").map(([name, value]) => [name, String(value)])];
    $("#persona").replaceChildren(el("h3", {}, about.id), el("p", {}, about.text), ...(about.setting ? [el("p", {}, about.setting)] : []),
      el("dl", {}, ...numbers.flatMap(([name, value]) => [el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, value)])),
      ...questions(dialogue, 0, false));
  };
  // An arc from each line to every line it contradicts, in the margin left of them.
  const arcs = () => {
    const drawing = $("#arcs");
    drawing.replaceChildren();
    if (!reader.open || current === null) return;
    const origin = drawing.getBoundingClientRect();
    const middle = (turn) => {
      const box = document.querySelector(`#turn-${turn} .line`).getBoundingClientRect();
      return box.top - origin.top + Math.min(box.height / 2, 40);
    };
    dialogues[current].v.line_to_line.forEach((verdict, place) => {
      for (const turn of verdict && verdict[0] === "x" ? verdict[2] : []) {
        const [from, to, right] = [middle(place + 1), middle(turn) + 4, origin.width - 4];
        const bow = Math.max(-6, right - 14 - 7 * (place + 1 - turn));
        drawing.append(svg("path", { d: `M${right} ${from}C${bow} ${from} ${bow} ${to} ${right} ${to}` }),
          svg("circle", { cx: right, cy: to, r: 3.5 }));
      }
    });
  };
  const open = (number, turn) => {
    const dialogue = dialogues[number];
    focusable(number);
    $("#reader-title").textContent = dialogue.id;
    $("#reader-about").textContent = [models[dialogue.m], dialogue.s,
      `prompt to line ${score(dialogue.score.prompt_to_line)}, line to line ${score(dialogue.score.line_to_line)}, questions ${score(dialogue.score.qa)}`].join(" · ");
    $("#turns").replaceChildren(...questions(dialogue, 0, true).map((block) => el("li", {}, block)),
      ...dialogue.turns.map((said, place) => turnOf(dialogue, said, place)));
    aside(dialogue);
    if (!reader.open) reader.showModal();
    for (const part of [".reading", ".lines", "#persona"]) $(part).scrollTo({ top: 0, behavior: "instant" });
    const place = shown.indexOf(number);
    $("#before").disabled = place <= 0;
    $("#after").disabled = place < 0 || place === shown.length - 1;
    history.replaceState(null, "", `#dialogue-${number + 1}`);
    arcs();
    if (turn !== null) goTo(turn);
  };
  const goTo = (turn) => {
    document.querySelectorAll(".turn.here").forEach((item) => item.classList.remove("here"));
    const item = document.getElementById(`turn-${turn}`);
    item?.classList.add("here");
    item?.scrollIntoView({ block: "center" });
    item?.focus({ preventScroll: true });
  };
  const step = (by) => {
    const next = shown[shown.indexOf(current) + by];
    if (current !== null && next !== undefined) open(next, null);
  };
  $("#before").addEventListener("click", () => step(-1));
  $("#after").addEventListener("click", () => step(1));
  $("#close").addEventListener("click", () => reader.close());
  reader.addEventListener("close", () => {
    history.replaceState(null, "", location.pathname + location.search);
    if (current !== null) button(current).focus();
  });
  reader.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#turn-']");
    if (link) { event.preventDefault(); goTo(Number(link.hash.slice(6))); }
    else if (event.target === reader) reader.close();
  });
  reader.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  reader.addEventListener("toggle", arcs, true); // a list of questions that opens moves the lines below it
  new ResizeObserver(arcs).observe($("#turns"));

  // -------------------------------------------------------------------------------------------------- controls

  $("#filters").addEventListener("submit", (event) => event.preventDefault());
  $("#text").addEventListener("input", (event) => { state.text = event.target.value.trim().toLowerCase(); filter(); });
  $("#first").addEventListener("change", (event) => { state.first = event.target.value; filter(); });
  $("#drift").addEventListener("change", (event) => { state.drift = event.target.value; filter(); });
  $("#model")?.addEventListener("change", (event) => { state.model = event.target.value; filter(); });
  $("#metric").addEventListener("change", (event) => { state.metric = event.target.value; build(); });
  $("#scenarios")?.addEventListener("change", (event) => { state.scenario = event.target.value; showScenario(); filter(); });
  const counts = new Map();
  for (const dialogue of dialogues) for (const name of drifts(dialogue)) counts.set(name, (counts.get(name) ?? 0) + 1);
  $("#drift").append(...[...counts].sort(([a, m], [b, n]) => n - m || a.localeCompare(b))
    .map(([name, count]) => el("option", { value: name }, `${spoken(name)} (${count})`)));
  $("#drift").parentElement.hidden = !counts.size; // of a judge that names none
  showScenario();
  build();
  const linked = Number(/^#dialogue-(\d+)$/.exec(location.hash)?.[1]) - 1;
  if (dialogues[linked]) open(linked, null);
  document.documentElement.dataset.ready = "yes";
})();
