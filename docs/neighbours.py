"""docs/pages/neighbours.md from its template: what our rows say of other work is read from the rows."""
from functools import partial
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined

from mcft.report import say

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT/'data'/'results'
TEMPLATE, PAGE = ROOT/'configs'/'pages'/'neighbours.md', ROOT/'docs'/'pages'/'neighbours.md'


def page(
    rows: Path = ROWS,  # folder of the committed rows
) -> str:  # Markdown
    "Fill the template; a contrast that no row has is said to be not measured yet."
    files = [rows/f'{name}contrasts.csv' for name in ('', 'beyond_', 'factorial_')]  # the last may be still to come
    contrasts = pd.concat([pd.read_csv(f) for f in files if f.exists()])
    tokens = pd.read_csv(rows/'pocket_sensitivity.csv').set_index('measure').value
    env = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    template = env.from_string(TEMPLATE.read_text(encoding='utf-8'))
    return template.render(say=partial(say, contrasts), careful=f"{tokens['base_careful']:.1%}",
                           of_these=f"{tokens['base_right_if_careful']:.1%}")


if __name__ == '__main__': PAGE.write_text(page(), encoding='utf-8')
