"""The paper's Figures 1 to 4 redrawn: what each shows, as vector drawings of one example of the pocket world.

Everything that is text comes from the committed rows: the example, its tokens, and the mask that `mcft.masking` draws
for it."""
import json, re, sys
from io import BytesIO
from pathlib import Path
from textwrap import wrap

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from mcft.mask import IGNORE, MaskPlan, MaskSpec  # noqa: E402

POCKET = ROOT/'data'/'pocket'
INK, GREEN, ORANGE, BLUE, GREY = '#000001', '#029e73', '#de8f05', '#0173b2', '#7f7f7f'
# points; a letter's width in the monospaced font and the distance of lines, in font sizes
WIDTH, EM, LEADING = 720, 0.602, 1.35


def rows(name: str) -> list:
    "A JSONL file of the pocket world."
    return [json.loads(s) for s in (POCKET/f'{name}.jsonl').read_text(encoding='utf-8').splitlines()]


def example() -> dict:
    "The shortest kept critique of a wrong rollout whose question is a sentence."
    def wrong(r):
        return r['status'] == 'kept' and r['question'][0].isupper() and f"\\boxed{{{r['answer']}}}" not in r['rollout']
    return min(filter(wrong, rows('critiques')), key=lambda r: (len(r['rollout'] + r['critique'] + r['reasoning']),
                                                                r['id']))


def tokens() -> list:  # (text, kind, masked) for each token of the example
    "The example as the student reads it, with the draw of a mask of a fifth."
    from tokenizers import Tokenizer
    row = next(r for r in rows('encoded') if r['id'] == f"{example()['id']}:critique")
    tok = Tokenizer.from_file(str(POCKET/'base'/'tokenizer.json'))
    (x,) = MaskPlan([row], MaskSpec(mask_rate=.2)).inputs()
    kinds = [kind for a, b, kind in row['spans'] for _ in range(a, b)]
    return [(tok.decode([i], skip_special_tokens=False).replace('｜', '|').replace('▁', '_'), kind, label == IGNORE
             and kind != 'prompt') for i, kind, label in zip(row['input_ids'], kinds, x['labels'].tolist())]


# Drawing: a point is a point, y grows downwards.

def canvas(height: float):  # points
    "An empty drawing."
    fig = Figure(figsize=(WIDTH/72, height/72))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    ax.axis('off')
    return fig, ax


def frame(ax, x, y, w, h, color, ls='-', strength=.16, shape=FancyBboxPatch):
    "A tinted box; the tint is transparent, so that it fits a dark page too."
    round = dict(boxstyle='round,pad=0,rounding_size=4') if shape is FancyBboxPatch else {}
    ax.add_patch(shape((x, y), w, h, fc=(color, strength), ec=color, lw=1.2, ls=ls, **round))


def say(ax, x, y, text, size=10.0, mono=False, **kw):
    "Lines of text below y."
    for i, line in enumerate(text.split('\n')):
        ax.text(x, y + size*(1 + LEADING*i), line.replace('$', r'\$'), size=size, color=INK, family='monospace' if mono
                else 'sans-serif', **kw)


def tall(text, size=10.0) -> float:
    "Height of a box around a text."
    return size*LEADING*(text.count('\n') + 1) + 13


def arrow(ax, x0, y0, x1, y1):
    "From one box to the next."
    ax.annotate('', (x1, y1), (x0, y0), arrowprops=dict(arrowstyle='-|>', color=INK, lw=1.3, shrinkA=1, shrinkB=1))


def fold(text, n) -> str:
    "Lines of at most n letters; line ends stay."
    return '\n'.join('\n'.join(wrap(s, n)) or '' for s in text.split('\n'))


def bare(rollout) -> str:
    "A chain without the tags around its thoughts."
    return re.sub(r'</?think>\n?', '', rollout).strip()


# The figures.

def pipeline():
    "Figure 1: from a question to a training example with a mask."
    r, w, gap = example(), 160, 24
    parts = (('1  question', '', r['question'], BLUE), ('2  rollout', 'the student samples', bare(r['rollout']), GREY),
             ('3  critique + rewrite', 'the teacher writes',
              f"{r['critique']}\n\n{r['reasoning']}\n\\boxed{{{r['answer']}}}", ORANGE),
             ('4  training', 'the student learns Y from X', "X: question, rollout\nY: critique, rewrite, and\nthe "
              "answer\n\nA fraction of the\ncritique's tokens is not\ntrained on.", GREEN))
    texts = [fold(text, 26) for *_, text, _ in parts]
    h = max(tall(t, 9) for t in texts)
    fig, ax = canvas(h + 40)
    for i, ((head, who, _, color), text) in enumerate(zip(parts, texts)):
        x = 3 + i*(w + gap)
        say(ax, x, 2, head, 11, weight='bold')
        say(ax, x, 18, who, 9.5)
        frame(ax, x, 36, w, h, color)
        say(ax, x + 8, 42, text, 9, mono=True)
        if i: arrow(ax, x - gap + 2, 36 + h/2, x - 2, 36 + h/2)
    return fig


def mask():
    "Figure 2: which tokens are trained on."
    size, x, y, cells = 9.5, 3, 26, []
    for text, kind, masked in tokens():
        if kind == 'prompt': continue
        shown = text.replace('\n', '↵').replace(' ', '·')
        w = max(len(shown)*EM*size + 7, 15)
        if x + w > WIDTH - 3 or text in ('<reasoning>', '<ans>'): x, y = 3, y + 42
        cells.append((x, y, w, shown, masked))
        x += w + 3
    fig, ax = canvas(y + 62)
    say(ax, 3, 2, 'Y, token by token: a masked token stays in sight, but is not trained on', 10.5, weight='bold')
    keys = (3, y + 42, 20, '', False, 'trained on: its label is the token itself'), (333, y + 42, 20, '', True,
                                                                                       'masked: its label is -100')
    for x, y, w, shown, masked, *key in (*cells, *keys):
        frame(ax, x, y, w, 16, ORANGE if masked else GREEN, '--' if masked else '-', .3 if masked else .14, Rectangle)
        say(ax, x + w/2, y + 1.5, shown, size, mono=True, ha='center')
        if masked: ax.plot([x + 2, x + w - 2], [y + 8, y + 8], color=INK, lw=1)
        if key: say(ax, x + 28, y + 2, key[0], 9.5)
        elif masked: say(ax, x + w/2, y + 17, '-100', 7, ha='center')
    return fig


def layout():
    "Figure 3: X and Y of one example, with their tags."
    r = example()
    parts = (('X', ''.join(t for t, kind, _ in tokens() if kind == 'prompt'), GREY, 'no loss'),
             ('Y', f"<critique>\n{r['critique']}\n</critique>", ORANGE,
              'loss, but not on the\nmasked tokens between\nthe tags'),
             ('', f"<reasoning>\n{r['reasoning']}\n</reasoning>", GREEN, 'loss on every token'),
             ('', f"<ans>\\boxed{{{r['answer']}}}</ans><|end_of_sentence|>", GREEN, 'loss on every token'))
    texts = [fold(text, 84) for _, text, *_ in parts]
    fig, ax = canvas(sum(tall(t, 9.5) + 6 for t in texts) + 18)
    y = 4
    for (name, _, color, loss), text in zip(parts, texts):
        h = tall(text, 9.5)
        say(ax, 4, y, name, 16, weight='bold')
        frame(ax, 30, y, 522, h, color, '--' if color == GREY else '-')
        say(ax, 40, y + 5, text, 9.5, mono=True)
        say(ax, 566, y + 5, loss, 10)
        y += h + (18 if name == 'X' else 6)
    return fig


def inference():
    "Figure 4: at inference the question alone."
    r = example()
    parts = (('Training', f"{r['question']}\n\n{bare(r['rollout'])}",
              f"{r['critique']}\n\n{r['reasoning']}\n\\boxed{{{r['answer']}}}", 'question and rollout',
              'critique, rewrite, answer', GREY, ORANGE),
             ('Inference', r['question'], 'a chain and a boxed answer', 'the question alone',
              'no critique is asked for', BLUE, GREEN))
    pairs = [(fold(x, 40), fold(y, 48)) for _, x, y, *_ in parts]
    fig, ax = canvas(sum(tall(max(p, key=lambda t: t.count('\n')), 9.5) + 42 for p in pairs))
    top = 2
    for (head, _, _, about_x, about_y, cx, cy), (x, y) in zip(parts, pairs):
        h = tall(max(x, y, key=lambda t: t.count('\n')), 9.5)
        say(ax, 3, top, f'{head}: {about_x}', 10.5, weight='bold')
        say(ax, 419, top, about_y, 10.5, weight='bold')
        for left, w, text, color, ls in ((3, 250, x, cx, '-'), (419, 298, y, cy, '-'), (300, 72, '', INK, '-')):
            frame(ax, left, top + 18, w, h, color, ls, .04 if color == INK else .16)
        say(ax, 12, top + 23, x, 9.5, mono=True)
        say(ax, 428, top + 23, y, 9.5, mono=True)
        say(ax, 336, top + 11 + h/2, 'student', 10.5, ha='center')
        for start in 256, 375: arrow(ax, start, top + 18 + h/2, start + 41, top + 18 + h/2)
        top += h + 40
    return fig


FIGURES = dict(paper_1_pipeline=pipeline, paper_2_mask=mask, paper_3_layout=layout, paper_4_inference=inference)


def svg(name: str, inline: bool = False) -> str:
    "A figure as SVG: a file with a white ground, or a piece of a page, in the colour of the text around it."
    out = BytesIO()
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, 'backend': matplotlib.rcParams['backend'],
                                'svg.fonttype': 'none', 'svg.hashsalt': name}):  # whatever was drawn before
        FIGURES[name]().savefig(out, format='svg', transparent=inline, metadata={'Date': None, 'Creator': None})
    text = re.sub(r'<metadata>.*?</metadata>\s*', '', out.getvalue().decode(), flags=re.S)
    text = re.sub(r'(\d\.\d\d)\d+', r'\1', text)
    if not inline: return text
    return text[text.index('<svg'):].replace(INK, 'currentColor')


if __name__ == '__main__':
    for name in FIGURES: (ROOT/'figures'/f'{name}.svg').write_text(svg(name), encoding='utf-8')
