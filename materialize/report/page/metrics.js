// Shows one figure of a task or study at a time.
document.querySelectorAll("select.metric").forEach((choice) => {
  "use strict";
  const views = [...choice.options].map((option) => document.getElementById("view-" + option.value));
  choice.addEventListener("change", () => {
    views.forEach((view) => { view.hidden = view.id !== "view-" + choice.value; });
    // The window may have changed its width while the plot was hidden.
    document.querySelectorAll(`[id="view-${choice.value}"] .js-plotly-plot`).forEach((plot) => Plotly.Plots.resize(plot));
  });
});
