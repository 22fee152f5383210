// The map of the users with its filters, and the neighbours of the user who is chosen.
(function () {
  "use strict";
  const users = Page.read("users");
  if (users === null) return;
  const near = users.near;
  const byId = (id) => document.getElementById(id);
  const count = (n) => n.toLocaleString("en");
  const rowOf = new Map(users.users.map((user, row) => [user, row]));
  const filters = [...document.querySelectorAll("select.filter")];
  const target = byId("figure-map");
  let chosen = near === null ? null : 0;

  // --- map

  const axis = { showgrid: false, zeroline: false, showticklabels: false, ticks: "" };
  const layout = {
    height: window.matchMedia("(max-width: 860px)").matches ? 680 : 600,
    margin: { l: 8, r: 8, t: 8, b: 8 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: "var(--soft)" },
    legend: { orientation: "h", y: -0.02, yanchor: "top", itemsizing: "constant" },
    hovermode: "closest",
    // Fixed, so that a filter leaves every user in its place.
    xaxis: { ...axis, range: span(users.x) },
    yaxis: { ...axis, range: span(users.y) },
  };

  function span(values) {
    let low = Infinity, high = -Infinity;
    for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
    const edge = 0.03 * (high - low) || 1;
    return [low - edge, high + edge];
  }

  function isShown(row) {
    return filters.every((f) => f.value === "" ||
      users.colourings[Number(f.dataset.colouring)].codes[row] === Number(f.value));
  }

  function describe(row) {
    const told = users.colourings.map((c) => c.name + ": " + c.names[c.codes[row]]);
    return [["user", users.users[row]].join(" "), ...told].map(Page.plain).join("<br>");
  }

  const texts = users.users.map((_, row) => describe(row));

  function points(rows, name, marker) {
    return {
      type: "scatter",
      mode: "markers",
      name: name,
      x: rows.map((r) => users.x[r]),
      y: rows.map((r) => users.y[r]),
      customdata: rows,
      text: rows.map((r) => texts[r]),
      hovertemplate: "%{text}<extra></extra>",
      marker: marker,
    };
  }

  // The groups that are drawn: names with a colour, the others together, and the unknown.
  function legend(colouring) {
    const groups = colouring.colours.map((colour, code) => ({ name: colouring.names[code], colour: colour, rows: [] }));
    const other = { name: "other", colour: "var(--faint)", rows: [] };
    const unknown = { name: "unknown", colour: "var(--grey)", rows: [] };
    users.users.forEach((_, row) => {
      const code = colouring.codes[row];
      const group = code === colouring.unknown ? unknown : groups[code] || other;
      if (isShown(row)) group.rows.push(row);
    });
    if (colouring.names.length - (colouring.unknown !== null) > groups.length) groups.push(other);
    if (colouring.unknown !== null) groups.push(unknown);
    return groups;
  }

  function drawMap() {
    const groups = legend(users.colourings[Number(byId("colouring").value)]);
    const traces = groups.map((group, rank) => ({
      ...points(group.rows, Page.plain(group.name) + " (" + count(group.rows.length) + ")",
        { color: group.colour, size: 5, opacity: 0.75 }),
      legendrank: rank,
    }));
    // Those without a colour of their own are last in the list and would cover the others.
    traces.sort((a, b) => b.marker.color.startsWith("var") - a.marker.color.startsWith("var"));
    if (chosen !== null) {
      const ring = { color: "rgba(0,0,0,0)", line: { color: "var(--ink)", width: 1.5 } };
      traces.push({ ...points(near.rows[chosen], "neighbours", { ...ring, size: 9 }), legendrank: 98 });
      traces.push({ ...points([chosen], "user " + Page.plain(users.users[chosen]),
        { color: "var(--ink)", size: 13, symbol: "star" }), legendrank: 99 });
    }
    Page.plot(target, traces, layout);
    const shown = groups.reduce((n, group) => n + group.rows.length, 0);
    byId("shown").textContent = count(shown) + " of " + count(users.users.length) + " users";
  }

  byId("colouring").addEventListener("change", drawMap);
  filters.forEach((f) => f.addEventListener("change", drawMap));
  byId("show-all").addEventListener("click", () => {
    filters.forEach((f) => { f.value = ""; });
    drawMap();
  });
  Page.keepDrawn(drawMap);

  // --- neighbours

  if (near === null) return;
  target.on("plotly_click", (event) => choose(event.points[0].customdata));
  const field = byId("user-id");
  const message = byId("find-message");

  function element(tag, name, ...content) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...content);
    return made;
  }

  // What the user is, what is like the chosen one's in bold.
  function traits(row) {
    const made = element("div", "traits");
    users.colourings.forEach((c) => {
      const alike = row !== chosen && c.codes[row] === c.codes[chosen] && c.codes[row] !== c.unknown;
      made.append(element("span", alike ? "tag alike" : "tag", c.name + " " + c.names[c.codes[row]]));
    });
    return made;
  }

  function consumed(row) {
    const own = new Set(near.consumed[chosen]);
    const made = element("ul", "what");
    near.consumed[row].forEach((item) => {
      made.append(element("li", row !== chosen && own.has(item) ? "alike" : "", near.items[item]));
    });
    if (near.consumed[row].length === 0) made.append(element("li", "", "nothing yet"));
    return made;
  }

  function neighbour(row, cosine) {
    const go = element("button", "link", "user " + users.users[row]);
    go.type = "button";
    go.addEventListener("click", () => choose(row));
    const made = element("li", "panel", element("div", "who", go, element("span", "figure", "cosine " + cosine.toFixed(3))));
    made.dataset.user = users.users[row];
    made.append(traits(row), consumed(row));
    return made;
  }

  // How often the neighbours are what the chosen user is, beside all users of this page.
  function shares() {
    const rows = near.rows[chosen];
    const body = element("tbody", "");
    users.colourings.forEach((c) => {
      const code = c.codes[chosen];
      if (code === c.unknown) return;
      const here = rows.filter((r) => c.codes[r] === code).length / rows.length;
      const all = c.codes.filter((other) => other === code).length / c.codes.length;
      const percent = (share) => element("td", "number", Math.round(100 * share) + "%");
      body.append(element("tr", "", element("td", "", c.name + " " + c.names[code]), percent(here), percent(all)));
    });
    return body;
  }

  function choose(row) {
    chosen = row;
    tell(row);
    drawMap();
  }

  function tell(row) {
    field.value = users.users[row];
    message.textContent = "";
    byId("chosen-user").replaceChildren("user " + users.users[row]);
    byId("chosen-traits").replaceChildren(traits(row));
    byId("chosen-consumed").replaceChildren(consumed(row));
    byId("shares").replaceChildren(...shares().children);
    byId("near").replaceChildren(...near.rows[row].map((r, k) => neighbour(r, near.cosine[row][k])));
  }

  field.addEventListener("input", () => {
    const begun = field.value.trim();
    const fits = users.users.filter((user) => user.startsWith(begun)).slice(0, 20);
    byId("user-ids").replaceChildren(...fits.map((user) => {
      const option = element("option", "");
      option.value = user;
      return option;
    }));
  });
  byId("find").addEventListener("submit", (event) => {
    event.preventDefault();
    const row = rowOf.get(field.value.trim());
    if (row === undefined) {
      message.textContent = "User " + field.value.trim() + " is not among the " +
        count(users.users.length) + " users of this page. `palate similar --user` asks for any user.";
      return;
    }
    choose(row);
  });
  byId("another").addEventListener("click", () => choose(Math.floor(Math.random() * users.users.length)));
  tell(chosen);
})();
