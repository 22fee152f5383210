(function () {
  "use strict";
  const config = { displayModeBar: false, responsive: true };
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  // Plotly reads a subset of HTML in names and hover texts.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  for (const [name, figure] of Object.entries(read("figures"))) {
    Plotly.newPlot("figure-" + name, figure.data, figure.layout, config);
  }

  const map = read("user-map");
  if (map === null) return;
  const target = document.getElementById("figure-map");
  const choice = document.getElementById("colouring");
  const axis = { showgrid: false, zeroline: false, showticklabels: false, ticks: "" };
  const layout = {
    height: 560,
    margin: { l: 8, r: 8, t: 8, b: 8 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: "#3b4552" },
    legend: { orientation: "h", y: -0.02, yanchor: "top", itemsizing: "constant" },
    hovermode: "closest",
    xaxis: axis,
    yaxis: axis,
  };
  const draw = () => {
    const colouring = map.colourings[Number(choice.value)];
    const traces = colouring.names.map((name, code) => {
      const rows = [];
      colouring.codes.forEach((c, row) => { if (c === code) rows.push(row); });
      return {
        type: "scatter",
        mode: "markers",
        name: plain(name) + " (" + rows.length.toLocaleString("en") + ")",
        x: rows.map((r) => map.x[r]),
        y: rows.map((r) => map.y[r]),
        text: rows.map((r) => "user " + plain(map.users[r]) + "<br>" + plain(name)),
        hovertemplate: "%{text}<extra></extra>",
        marker: { color: colouring.colours[code], size: 5, opacity: 0.7 },
        legendrank: code,
      };
    });
    // "other" is last and would cover the rest.
    if (colouring.names[colouring.names.length - 1] === "other") traces.unshift(traces.pop());
    Plotly.react(target, traces, layout, config);
  };
  choice.addEventListener("change", draw);
  draw();
})();
