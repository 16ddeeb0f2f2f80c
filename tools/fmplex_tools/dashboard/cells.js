// Cells of the table of vFMs. AG Grid calls these; names come as text and are never read as HTML.
window.fmplex = (() => {
  const NONE = "–";
  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const number = ({ value }) => {
    if (value === null || value === undefined) return NONE;
    if (value === 0) return "·";
    if (value < 0.1) return "< 0.1";
    if (value >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en-US");
    return value.toFixed(1);
  };
  const percent = ({ value }) => (value === null || value === undefined ? NONE : (100 * value).toFixed(1) + "%");
  const name = ({ value, data }) => {
    const link = element("a", "vfm-link", value);
    link.href = data.href;
    link.title = value;
    return link;
  };
  const state = ({ data }) => {
    const made = element("span", "state tone-" + data.tone);
    made.append(element("span", "mark", data.mark), element("span", "", data.state));
    return made;
  };
  // The share as a bar, with a line where the vFM is entitled to be.
  const share = ({ value, data }) => {
    if (value === null || value === undefined) return NONE;
    const made = element("div", "share");
    const bar = element("div", "share-bar");
    const fill = element("div", "share-fill");
    fill.style.width = 100 * Math.min(1, value) + "%";
    bar.append(fill);
    if (data.entitled) {
      const mark = element("div", "share-mark");
      mark.style.left = 100 * Math.min(1, data.entitled) + "%";
      bar.append(mark);
    }
    made.title = `share ${(100 * value).toFixed(1)}%, entitled to ${(100 * data.entitled).toFixed(1)}%`;
    made.append(bar, element("span", "share-text", Math.round(100 * value) + "%"));
    return made;
  };
  const byState = (a, b, left, right) =>
    left.data.order - right.data.order || left.data.vfm.localeCompare(right.data.vfm);
  const trouble = ({ value }) => ["ag-right-aligned-cell", value ? "tone-bad" : "quiet"];
  const met = ({ value }) => [
    "ag-right-aligned-cell",
    value === null ? "quiet" : value >= 0.99 ? "tone-good" : value >= 0.9 ? "tone-warn" : "tone-bad",
  ];
  const open = ({ data, event }) => {
    if (data && !(event && event.target.closest("a"))) window.location.href = data.href;
  };
  return { number, percent, name, state, share, byState, trouble, met, open };
})();
