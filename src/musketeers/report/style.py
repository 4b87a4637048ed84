"""The page's look: readable on a phone and in the dark, text at 7:1 contrast or better."""

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c1e21; --soft: #50555c;
  --line: #d5d9de; --mark: #1f6fb2; --heat: #7db7e8; --better: #0b5a2a; --worse: #8f1414;
  --warn: #fff4d6; --s1: #1f6fb2; --s2: #b04a00; --s3: #2f7d3b; --s4: #7a3f9d; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --text: #eceef0; --soft: #b3b9c1;
  --line: #3a3f46; --mark: #6db3f2; --heat: #1f5c93; --better: #7ddc9f; --worse: #ff9d9d;
  --warn: #3a3014; --s1: #6db3f2; --s2: #ffa45c; --s3: #7ddc8c; --s4: #d3a4ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, figcaption { max-width: 75ch; }
.lead { font-size: 1.15rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.warn { background: var(--warn); padding: .5rem .5rem .5rem 1.6rem; border-radius: 4px; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .3rem 0 1rem; }
caption { text-align: left; padding-bottom: .3rem; position: sticky; left: 0;
  max-width: calc(100vw - 2rem); }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child { text-align: left; }
th { font-weight: 600; }
tbody th { font-weight: 400; }
tbody tr.domain th { font-weight: 600; padding-top: .9rem; }
td small, th small { display: block; color: var(--soft); }
.named caption { color: var(--text); font-size: 1rem; font-weight: 600; }
/* names stay in sight while a wide table scrolls */
th:first-child { position: sticky; left: 0; background: var(--page); }
@media (max-width: 480px) { tbody th { white-space: normal; min-width: 8rem;
  max-width: 9rem; } }
.better { color: var(--better); font-weight: 600; }
.worse { color: var(--worse); font-weight: 600; }
.heat td { min-width: 4.5rem; }
.told :is(th, td):last-child { text-align: left; white-space: normal; min-width: 24rem; }
.bar { text-align: left; min-width: min(12rem, 16vw); }
.bar span { display: inline-block; height: .8em; background: var(--mark); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(280px, 100%), 1fr));
  gap: .5rem 1.5rem; }
figure { margin: 0; min-width: 0; }
svg { width: 100%; height: auto; max-width: 420px; }
svg text { fill: var(--soft); font-size: 11px; }
.axis { fill: none; stroke: var(--line); }
polyline { fill: none; stroke: var(--mark); stroke-width: 1.8; stroke-linejoin: round; }
.pale polyline { stroke: var(--soft); stroke-width: 1; opacity: .6; }
circle { fill: var(--mark); }
.s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); }
.s4 { color: var(--s4); }
svg g path { stroke: currentColor; stroke-width: 1.5; }
svg .mark { fill: currentColor; stroke: none; }
.key span { margin-right: 1.2rem; white-space: nowrap; }
.key svg { width: .9em; height: .9em; margin-right: .35em; }
.pair { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.pair > * { min-width: 0; }
pre { background: color-mix(in srgb, var(--line) 35%, var(--page)); padding: .7rem;
  border-radius: 4px; font-size: .85rem; }
summary { cursor: pointer; }
"""
