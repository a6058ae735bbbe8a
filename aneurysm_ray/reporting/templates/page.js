"use strict";
(() => {
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Charts: drawn when they come near the view, in the colours of the reader's theme.
  const template = () => {
    const [ink, soft, grid, line, card] = ["--ink", "--soft", "--grid", "--line", "--card"].map(css);
    const axis = {gridcolor: grid, zerolinecolor: line, linecolor: line, tickcolor: line, automargin: true, exponentformat: "power",
                  tickfont: {color: soft}, title: {font: {color: soft, size: 13}, standoff: 8}};
    return {layout: {
      font: {family: css("--text"), size: 13, color: ink}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: axis, yaxis: axis, hoverlabel: {bgcolor: card, bordercolor: line, font: {color: ink}},
      modebar: {bgcolor: "rgba(0,0,0,0)", color: line, activecolor: css("--accent")},
      legend: {font: {color: soft}, bgcolor: "rgba(0,0,0,0)"}, colorway: ["#3277c2", "#d9741a", "#1f9e89", "#b5478f", "#8673d6", "#a2882a", "#c94f4f", "#5b8a3c"],
    }};
  };
  const choose = (holder, choice) => {
    const visible = holder.data.map(trace => trace.meta === undefined || trace.meta === choice);
    Plotly.restyle(holder, {visible});
  };
  const draw = async holder => {
    const figure = JSON.parse(document.getElementById(holder.dataset.figure).textContent);
    figure.layout.template = template();
    await Plotly.newPlot(holder, figure.data, figure.layout,
      {responsive: true, displaylogo: false, displayModeBar: "hover",
       modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]]});
    const menu = document.querySelector(`[data-choose="${CSS.escape(holder.closest("figure").id)}"]`);
    if (menu) {
      choose(holder, menu.value);
      menu.addEventListener("change", () => choose(holder, menu.value));
    }
    holder.dataset.drawn = "yes";
  };
  // What is in view comes first; the rest follows one by one, so that printing and searching find it.
  const holders = [...document.querySelectorAll("[data-figure]")];
  const waiting = new Set(holders);
  const drawNow = holder => {
    if (waiting.delete(holder)) draw(holder);
  };
  const watcher = new IntersectionObserver(
    entries => entries.filter(entry => entry.isIntersecting).forEach(entry => drawNow(entry.target)), {rootMargin: "300px"});
  holders.forEach(holder => watcher.observe(holder));
  const drawRest = () => {
    for (const holder of waiting) {
      drawNow(holder);
      setTimeout(drawRest, 20);
      return;
    }
  };
  addEventListener("load", () => setTimeout(drawRest, 100));
  const recolour = () => holders.filter(h => h.dataset.drawn).forEach(h => Plotly.relayout(h, {template: template()}));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  addEventListener("beforeprint", () => holders.forEach(drawNow));

  // Tables: a click on a heading sorts, a word filters.
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    table.querySelectorAll("th").forEach((heading, column) => {
      const cells = [...body.rows].map(row => row.cells[column]);
      if (cells.some(cell => cell.classList.contains("number"))) heading.classList.add("number");
      heading.firstElementChild.addEventListener("click", () => {
        const numeric = heading.classList.contains("number");
        const before = heading.getAttribute("aria-sort");
        const order = before === "none" ? (numeric ? "descending" : "ascending") : before === "ascending" ? "descending" : "ascending";
        table.querySelectorAll("th").forEach(other => other.setAttribute("aria-sort", "none"));
        heading.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const key = row => row.cells[column].dataset.key;
        const compare = (a, b) => key(a) === "" ? 1 : key(b) === "" ? -1 :
          sign * (numeric ? key(a) - key(b) : key(a).localeCompare(key(b), undefined, {numeric: true}));
        body.append(...[...body.rows].sort(compare));
      });
    });
  }
  for (const input of document.querySelectorAll("[data-filter]")) {
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of document.getElementById(input.dataset.filter).tBodies[0].rows)
        row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    });
  }

  // Cases: heat maps on or off.
  for (const box of document.querySelectorAll("[data-overlay]"))
    box.addEventListener("change", () => document.getElementById(box.dataset.overlay).classList.toggle("cases-plain", !box.checked));

  // Galleries: thousands of items stay data; one page of them becomes pictures.
  const PAGE = 36;
  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  for (const gallery of document.querySelectorAll("[data-gallery]")) {
    const items = JSON.parse(document.getElementById(gallery.dataset.gallery).textContent);
    const texts = items.map(item => [item.id, ...item.lines, ...item.flags].join(" ").toLowerCase());
    const menus = [...gallery.querySelectorAll("[data-facet]")];
    const find = gallery.querySelector("[data-find]");
    const [back, forth] = gallery.querySelectorAll("[data-step]");
    const where = gallery.querySelector("[data-where]");
    const pictures = gallery.querySelector("[data-pictures]");
    const values = (item, facet) => [item.facets[facet] ?? []].flat();
    for (const menu of menus) {
      const counts = new Map();
      for (const item of items) for (const value of values(item, menu.dataset.facet)) counts.set(value, (counts.get(value) ?? 0) + 1);
      for (const [value, count] of [...counts].sort((a, b) => b[1] - a[1])) menu.add(new Option(`${value} (${count})`, value));
    }
    let page = 0, shown = items;
    const render = () => {
      const pages = Math.max(1, Math.ceil(shown.length / PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      pictures.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(item => {
        const figure = element("figure", "picture");
        if (item.image) {
          const image = element("img");
          image.src = item.image;
          image.alt = `Pictures of series ${item.id}`;
          figure.append(image);
        }
        const caption = element("figcaption");
        const uid = element("span", "uid", item.id);
        uid.title = item.id;
        caption.append(uid, ...item.lines.map(line => element("div", "", line)), ...item.flags.map(flag => element("span", "flag", flag)));
        figure.append(caption);
        return figure;
      }));
      where.textContent = `${shown.length.toLocaleString("en")} series, page ${page + 1} of ${pages}`;
      back.disabled = page === 0;
      forth.disabled = page === pages - 1;
    };
    const filter = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      shown = items.filter((item, i) => words.every(word => texts[i].includes(word)) &&
        menus.every(menu => !menu.value || values(item, menu.dataset.facet).includes(menu.value)));
      page = 0;
      render();
    };
    const turn = step => { page += step; render(); };
    menus.forEach(menu => menu.addEventListener("change", filter));
    find.addEventListener("input", filter);
    back.addEventListener("click", () => turn(-1));
    forth.addEventListener("click", () => turn(1));
    pictures.addEventListener("keydown", event => {
      if (event.key === "ArrowLeft") turn(-1);
      if (event.key === "ArrowRight") turn(1);
    });
    render();
  }

  // The chapter in view.
  const links = new Map([...document.querySelectorAll(".chapters a")].map(link => [link.hash.slice(1), link]));
  const chapters = [...document.querySelectorAll("main > section")].filter(section => links.has(section.id));
  const seen = new Set();
  const reader = new IntersectionObserver(entries => {
    for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target);
    // Between two chapters, and above the first, the last one that was begun is the one that is read.
    const here = chapters.find(section => seen.has(section)) ||
      chapters.findLast(section => section.getBoundingClientRect().top < innerHeight / 5) || chapters[0];
    for (const [id, link] of links) link.classList.toggle("here", id === here?.id);
  }, {rootMargin: "-20% 0px -70% 0px"});
  chapters.forEach(section => reader.observe(section));
})();
