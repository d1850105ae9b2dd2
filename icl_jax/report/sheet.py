"""How a page looks: on a screen, light or dark, wide or narrow, and on paper."""

from icl_jax.report import style

_SHEET = """\
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1d2126; --quiet: #5a626b; --line: #dfe3e7; --accent: #0b5c94;
  --tint: #f6f8fa; --plate: #ffffff;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --ink: #e3e6e9; --quiet: #9ea7b0; --line: #343a40; --accent: #7cb8e4;
    --tint: #1d2125; --plate: #1b1f23;
    FIGURES
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 4.5rem 1.5rem 5rem; max-width: 48rem;
  background: var(--paper); color: var(--ink);
  font: 1.09rem/1.62 Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4",
    "Palatino Linotype", Georgia, serif;
  text-rendering: optimizeLegibility; hyphens: manual;
}
h1, h2, h3, nav, dl, table, footer {
  font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
}
h1 { margin: 0 0 1.25rem; font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.015em;
  font-weight: 680; text-wrap: balance; }
h2 { margin: 0 0 1.1rem; font-size: 1.3rem; line-height: 1.3; letter-spacing: -0.005em;
  font-weight: 650; text-wrap: balance; }
h3 { margin: 0 0 0.9rem; font-size: 1.12rem; line-height: 1.35; font-weight: 650;
  text-wrap: balance; font-family: system-ui, -apple-system, "Segoe UI", Arial, sans-serif; }
h1, h2, h3 { overflow-wrap: anywhere; }
main > h2 { margin: 5rem 0 -1.5rem; padding-top: 1rem; border-top: 2px solid var(--ink); }
.verdict { font-weight: 600; }
p { margin: 0 0 1rem; overflow-wrap: break-word; }
a { color: var(--accent); text-underline-offset: 0.15em; text-decoration-thickness: 1px; }
code { font: 0.86em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--tint); padding: 0.1em 0.3em; border-radius: 3px; overflow-wrap: anywhere; }
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 1.5rem 2rem; margin: 2.5rem 0; padding: 1.5rem 0; border: solid var(--line);
  border-width: 1px 0; }
.strip div { display: flex; flex-direction: column; min-width: 0; overflow-wrap: anywhere; }
.strip dt { font-size: 0.82rem; line-height: 1.4; color: var(--quiet); }
.strip dd { margin: 0; font-variant-numeric: tabular-nums; }
.strip .value { margin-top: auto; padding-top: 0.3rem; font-size: 1.65rem; line-height: 1.3;
  font-weight: 600; letter-spacing: -0.01em; }
.strip .control { min-height: 1.4em; font-size: 0.82rem; line-height: 1.4; color: var(--quiet); }
nav { margin: 2.5rem 0; font-size: 0.95rem; line-height: 1.5; }
nav ul { margin: 0; padding: 0; list-style: none; }
nav li { margin-bottom: 0.85rem; break-inside: avoid; }
nav li p { margin: 0.1rem 0 0; }
nav .part { margin-top: 1.6rem; font-weight: 650; color: var(--quiet); }
nav a { text-decoration: none; font-weight: 600; }
nav a:hover, nav a:focus-visible { text-decoration: underline; }
section { margin-top: 4rem; scroll-margin-top: 1.5rem; }
figure { margin: 0; }
.plate { background: var(--plate); border: 1px solid var(--line); border-radius: 4px;
  padding: 0.9rem; margin-bottom: 1.25rem; overflow-x: auto; }
.plate svg { display: block; width: 100%; min-width: 34rem; max-width: 46rem; height: auto;
  margin: 0 auto; }
.wide { overflow-x: auto; margin: 1.75rem 0; }
table { border-collapse: collapse; min-width: 55%; font-size: 0.88rem; line-height: 1.45;
  font-variant-numeric: tabular-nums lining-nums; }
caption { caption-side: top; text-align: left; color: var(--quiet); padding-bottom: 0.6rem; }
th, td { padding: 0.38rem 1.1rem 0.38rem 0; text-align: left; vertical-align: baseline; }
th { overflow-wrap: break-word; vertical-align: bottom; }
td { overflow-wrap: break-word; }
.long { overflow-wrap: anywhere; }
.broad table { font-size: 0.82rem; }
.broad th, .broad td { padding-right: 0.8rem; }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 600; border-bottom: 1px solid var(--ink); }
td { border-bottom: 1px solid var(--line); }
.n { text-align: right; }
td.n { white-space: nowrap; }
footer { margin-top: 5rem; padding-top: 1.25rem; border-top: 1px solid var(--line);
  font-size: 0.82rem; line-height: 1.55; color: var(--quiet); }
footer p { margin-bottom: 0.5rem; overflow-wrap: anywhere; }
footer dl { columns: 18rem; margin: 0.75rem 0 0; }
footer dl div { display: flex; gap: 0.75rem; break-inside: avoid; overflow-wrap: anywhere; }
@media screen { footer details:not([open]) + dl { display: none; } }
footer dt { flex: 1; }
footer dd { margin: 0; text-align: right; }
@media screen and (min-width: 50rem) {
  .plate { margin-left: -1rem; margin-right: -1rem; }
  .broad { margin-left: calc(50% - min(50vw - 1.5rem, 37rem));
    margin-right: calc(50% - min(50vw - 1.5rem, 37rem)); }
  .broad table { margin: 0 auto; }
}
@media screen and (max-width: 50rem) {
  .broad thead { position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%); }
  .broad table, .broad tbody, .broad caption { display: block; }
  .broad tr { display: block; padding: 0.5rem 0; border-bottom: 1px solid var(--line); }
  .broad td { display: flex; justify-content: space-between; gap: 1.5rem; border: 0;
    padding: 0.1rem 0; white-space: normal; text-align: right; }
  .broad td::before { content: attr(data-label); color: var(--quiet); text-align: left;
    min-width: 5rem; }
}
@media (max-width: 36rem) {
  body { padding: 2.25rem 1.1rem 3rem; font-size: 1rem; }
  h1 { font-size: 1.65rem; }
  section { margin-top: 3rem; }
  .plate { padding: 0.5rem; }
  .strip { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1.25rem; }
  th, td { padding-right: 0.7rem; }
  .many thead { position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%); }
  .many table, .many tbody, .many caption { display: block; }
  .many tr { display: block; padding: 0.5rem 0; border-bottom: 1px solid var(--line); }
  .many td { display: flex; justify-content: space-between; gap: 1.5rem; border: 0;
    padding: 0.1rem 0; white-space: normal; text-align: right; }
  .many td::before { content: attr(data-label); color: var(--quiet); text-align: left;
    min-width: 5rem; }
}
@media print {
  :root { --paper: #ffffff; --ink: #000000; --quiet: #444444; --line: #cccccc;
    --accent: #000000; --tint: #ffffff; }
  @page { margin: 2cm; }
  body { padding: 0; max-width: none; font-size: 10.5pt; }
  nav a { color: inherit; }
  summary { list-style: none; }
  .wide { overflow: visible; }
  table { font-size: 8.5pt; }
  .broad table { font-size: 7pt; }
  .broad th, .broad td { padding-right: 5pt; }
  .broad td { overflow-wrap: anywhere; }
  section { margin-top: 2rem; }
  .plate { border: 0; padding: 0; overflow: visible; }
  .plate svg { min-width: 0; }
  h2, h3, caption, .plate, .verdict { break-after: avoid; }
  figure .plate, tr, .strip { break-inside: avoid; }
}
"""

#: The style sheet of a page; the colours of figures follow the reader's dark mode.
STYLE_SHEET = _SHEET.replace(
    "FIGURES", " ".join(f"--f-{light[1:]}: {dark};" for light, dark in style.DARK.items())
)
