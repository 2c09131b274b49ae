"""Encoding on three kinds of tokenizer against a slow reference, and what must hold of every mask, on examples that hypothesis makes up."""
import json, re, subprocess, sys
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from conftest import ROOT, cells
from mcft.core import check_row, read_rows
from mcft.masking import (CHOICES, IGNORE, MASKABLE, PRESETS, MaskPlan, MaskSpec, add_moments, draw_mask, encode, encode_all, encode_rows, example_text,
                          find_units, labels, mask_band, mask_id, model_inputs, preset, render_prompt, show_example)
from mcft.scores import SCORES, score_rows, target_spans

TAGS = ("<critique>", "</critique>", "<reasoning>", "</reasoning>", "<ans>", "</ans>", "<think>", "</think>")
TEXT = ["The sum is right: 3 + 4 = 7. But 7 * 2 is 14, not 15!\r\nÉtape 2: naïve; e\u0301 wrong?", "What is (3 + 4) * 2? 𝟕 × 2 = 14 👍🏽 一二三",
        "<critique>\n</critique>\n<reasoning>\n</reasoning>\n<ans>\\boxed{14}</ans> <think>\n</think>"]*4
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def row(i='1', **parts) -> dict:
    "One critique."
    return dict(id=i, problem_id='p' + i, question='What is (3 + 4) * 2?', rollout='3 + 4 = 7. 7 * 2 = 15.',
                critique='The sum is right. But 7 * 2 is 14, not 15.', reasoning='3 + 4 = 7.\n7 * 2 = 14.', answer='14') | parts


def tokenizer(kind: str, tags: bool):
    "A tokenizer trained on the spot: byte-level BPE, Unigram as SentencePiece writes it, or WordPiece."
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    special = ['<pad>', '<s>', '</s>', '[UNK]', '<|user|>', '<|assistant|>', *(TAGS if tags else ())]
    byte_level = dict(special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    if kind in ('bpe', 'qwen'):
        t, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(vocab_size=420, **byte_level)
        t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        if kind == 'qwen':
            t.normalizer = normalizers.NFC()
            pattern = Regex(r'\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*| ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+')
            t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, 'isolated'), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    elif kind == 'unigram':
        t, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(vocab_size=220, special_tokens=special, unk_token='[UNK]', show_progress=False)
        t.normalizer, t.pre_tokenizer, t.decoder = normalizers.NFKC(), pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        t, trainer = Tokenizer(models.WordPiece(unk_token='[UNK]')), trainers.WordPieceTrainer(vocab_size=260, special_tokens=special, show_progress=False)
        t.normalizer, t.pre_tokenizer, t.decoder = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    t.train_from_iterator(TEXT, trainer)
    tok = PreTrainedTokenizerFast(tokenizer_object=t, bos_token='<s>', eos_token='</s>', pad_token='<pad>', unk_token='[UNK]')
    tok.chat_template = TEMPLATE
    return tok


TOKENIZERS = {f'{kind}{", tags special" if tags else ""}': tokenizer(kind, tags) for kind in ('bpe', 'qwen', 'unigram', 'wordpiece') for tags in (False, True)}


# --- encoding against a reference that goes character by character

def reference(r: dict, tok, layout: str):
    "Ids, kind of each token, number of its sentence, and of its word: by loops over characters."
    user, target = example_text(r, layout)
    x, y = render_prompt(tok, user), target + tok.eos_token
    kind, sentence, word = ['prompt']*len(x) + ['tag']*len(y), [0]*len(x + y), []
    for k, opener in dict(critique='<critique>', reasoning='<reasoning>' if layout == 'critique' else '<think>', answer='\\boxed{').items():
        if k == 'critique' and layout == 'question': continue
        text = r[k].strip()
        a = y.index(opener) + len(opener)
        a = len(x) + y.index(text, a)
        kind[a:a + len(text)] = [k]*len(text)
        for j in range(1, len(text)):
            run = re.match(r'\s*', text[j:]).group()
            if text[j].isspace() and not text[j-1].isspace() and (text[j-1] in '.!?' or '\n' in run):
                for i in range(a + j, a + len(text)): sentence[i] += 1
        if k == 'answer':
            kind[a - len('\\boxed{') - (len(r[k]) - len(r[k].lstrip())):a] = ['box']*(len('\\boxed{') + len(r[k]) - len(r[k].lstrip()))
            close = (x + y).index('}', a + len(text)) + 1
            kind[a + len(text):close] = ['box']*(close - a - len(text))
    kind[len(x + y) - len(tok.eos_token):] = ['eos']*len(tok.eos_token)
    for i, c in enumerate(x + y): word.append((word[-1] if word else 0) + (i > 0 and not c.isspace() and (x + y)[i-1].isspace()))
    enc, out = tok(x + y, add_special_tokens=False, return_offsets_mapping=True), []
    for a, b in enc['offset_mapping']:
        b = max(b, a + 1)
        k = 'box' if 'box' in kind[a:b] else 'tag' if 'tag' in kind[a:b] else kind[b-1]
        out.append((k, sentence[b-1], word[b-1]))
    return enc['input_ids'], out


def check_against_reference(r: dict, tok, layout: str):
    "Spans partition the sequence, carry the right names, and words and sentences end where they should."
    e = encode(r, tok, layout)
    check_row(e, 'encoded')
    ids, want = reference(r, tok, layout)
    assert e['input_ids'] == ids
    assert [s[0] for s in e['spans']] == [0, *(s[1] for s in e['spans'][:-1])] and e['spans'][-1][1] == len(ids)
    kinds = [k for a, b, k in e['spans'] for _ in range(b - a)]
    assert kinds == ['answer' if k == 'box' else k for k, *_ in want]
    plan = MaskPlan([e], MaskSpec(0., target='+'.join(MASKABLE)))
    assert plan.may_mask()[0].tolist() == [k in MASKABLE for k, *_ in want]
    at = plan.units.at
    for unit, j in (('sentence', 1), ('word', 2)):
        got = find_units([e], MaskSpec(unit=unit, target='+'.join(MASKABLE))).unit
        names = [(want[i][0], want[i][j]) for i in at]
        assert [a == b for a, b in zip(got, got[1:])] == [a == b for a, b in zip(names, names[1:])], unit


@pytest.mark.parametrize('name', TOKENIZERS)
@pytest.mark.parametrize('layout', ['critique', 'question'])
def test_encoding(name, layout):
    "Astral text, Windows line ends, combining marks, words without white space; box and tags stay whole."
    tok = TOKENIZERS[name]
    for r in (row(), row(critique='𝟑 + 𝟒 is fine 👍🏽. Étape 2:\r\nnaïve e\u0301é, wrong!  Yes.', reasoning='𝟕 × 2 = 14\r\n\r\n一二三 = 14'),
              row(critique='a\u00a0b\u3000c.  \t\n\n d', reasoning='x', answer='\\frac{1}{2}'), row(critique='critique', reasoning='reasoning', answer=' 7 ')):
        check_against_reference(r, tok, layout)
        e = encode(r, tok, layout)
        x = render_prompt(tok, example_text(r, layout)[0])
        n = e['spans'][0][1]
        assert e['input_ids'][:n] == tok(x, add_special_tokens=False).input_ids, 'X is not what the model sees at inference'


anything = st.text(st.one_of(st.sampled_from('ab 12.,!?\n\r\t"}{\\'), st.characters(exclude_categories=['Cs'])), max_size=30)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(['critique', 'question']), anything, anything)
def test_encoding_of_anything(name, layout, a, b):
    "Whatever the critique and the chain say."
    check_against_reference(row(critique='ab ' + a, reasoning='12 ' + b), TOKENIZERS[name], layout)


def test_together_or_alone():
    "Encoding many rows gives what encoding one gives."
    for tok in TOKENIZERS.values():
        rows = [row(str(i), critique=f'{TEXT[i % 2]} {i}') for i in range(7)]
        assert encode_rows(rows, tok, 'critique') == [encode(r, tok, 'critique') for r in rows]


def test_length():
    "Too long is an error with a name, or left out with a reason; nothing is ever cut."
    tok, rows = TOKENIZERS['bpe'], [dict(row('a'), status='kept', reason=''), dict(row('b', critique='long. '*200), status='kept', reason='')]
    with pytest.raises(ValueError, match='b:critique has .* tokens, more than max_length=300'): encode_all(rows, tok, 300)
    out, dropped = encode_all(rows, tok, 300, 'drop')
    assert [e['id'] for e in out] == ['a:critique', 'a:question'] and dropped == {'b': 'longer than 300 tokens'}
    assert all(e['input_ids'][-1] == tok.eos_token_id and e['spans'][-1][2] == 'eos' for e in out)


def test_nothing_left_of_a_part():
    "A critique that the tokenizer drops altogether is an error that names the row."
    with pytest.raises(ValueError, match="7:critique: spans hold .* no token is left for a part"):
        encode(row('7', critique='\x00\x01'), TOKENIZERS['wordpiece'], 'critique')
    assert encode_rows([], TOKENIZERS['bpe'], 'critique') == []
    with pytest.raises(ValueError, match='no rows to mask'): MaskPlan([], MaskSpec())


def test_template_that_opens_a_thought():
    "DeepSeek-R1's generation prompt ends in <think>: not twice in the question layout, not at all before a critique."
    tok = tokenizer('bpe', True)
    tok.chat_template = TEMPLATE.replace('<|assistant|>', '<|assistant|><think>\n')
    e, c = encode(row(), tok, 'question'), encode(row(), tok, 'critique')
    assert tok.decode(e['input_ids']).count('<think>') == 1 and tok.decode(c['input_ids']).endswith('<ans>\\boxed{14}</ans></s>')
    n = e['spans'][0][1]
    assert tok.decode(e['input_ids'][:n]).endswith('<|assistant|><think>\n') and e['spans'][1][2] == 'reasoning'
    assert '<think>' not in tok.decode(c['input_ids'])


# --- masks on made-up examples

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@st.composite
def examples(draw, n=st.integers(1, 5)):
    "Encoded rows with sentences and words of any size; some without a critique."
    out = []
    for i in range(draw(n)):
        spans, words, at = [], [], 0
        for kind, parts in (('prompt', [draw(st.integers(1, 6))]), ('tag', [2]), ('critique', draw(st.one_of(sizes, st.just([])))), ('tag', [1]),
                            ('reasoning', draw(sizes)), ('tag', [1]), ('answer', [2, draw(st.integers(1, 3)), 1]), ('eos', [1])):
            for j, k in enumerate(parts):
                spans.append([at, at + k, kind]); at += k
                if kind in ('critique', 'reasoning') or (kind == 'answer' and j == 1): words += _cut(draw, k)
        out.append(dict(id=f'e{i}:critique', layout='critique', problem_id=f'p{i}', input_ids=[10 + (i*7 + j) % 80 for j in range(at)], spans=spans,
                        words=words))
    return out


def _cut(draw, n: int) -> list:
    "n tokens as words of random sizes."
    out = []
    while n:
        out.append(k := draw(st.integers(1, n))); n -= k
    return out


targets = st.sampled_from(['critique', 'reasoning', 'answer', 'critique+answer', 'critique+reasoning+answer'])
specs = st.builds(MaskSpec, rate=st.one_of(st.sampled_from([0., .2, 1.]), st.floats(0, 1)), seed=st.integers(0, 9), target=targets,
                  **{name: st.sampled_from(values) for name, values in CHOICES.items()})
many = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def made_scores(rows: list, spec: MaskSpec) -> dict:
    "Scores with ties, by a rule that depends on the example alone."
    return {r['id']: [(sum(map(ord, r['id'])) + 7*i) % 5 for i in range(sum(b - a for a, b in target_spans(r, spec.target)))] for r in rows}


@many
@given(examples(), specs, st.integers(0, 3))
def test_mask(rows, spec, epoch):
    "Only the target; units whole; the exact share exact; the count in its band; alone, together, in another order, again: the same."
    scores = made_scores(rows, spec)
    plan = MaskPlan(rows, spec, scores, blank=3)
    masks, units = plan.masks(epoch), plan.units
    for r, m, may in zip(rows, masks, plan.may_mask()):
        kinds = np.concatenate([[k]*(b - a) for a, b, k in r['spans']])
        assert not (m & ~may).any() and set(kinds[may]) <= set(spec.targets)
        assert np.flatnonzero(may).tolist() == [i for a, b in target_spans(r, spec.target) for i in range(a, b)]      # what mcft.scores takes for the target
        assert (draw_mask(r, spec, epoch, scores) == m).all()
    hit = np.concatenate(masks)[units.at]
    per_unit = np.bincount(units.unit, hit, len(units.example))
    assert ((per_unit == 0) | (per_unit == np.bincount(units.unit, minlength=len(units.example)))).all()
    if spec.draw == 'exact':
        n = np.bincount(units.example, minlength=len(rows))
        assert (np.bincount(units.example, per_unit > 0, len(rows)) == (spec.rate*n + .5).astype(int)).all()
    low, high = mask_band(add_moments(rows, spec, scores))
    assert low - 1e-6 <= sum(m.sum() for m in masks) <= high + 1e-6
    back = MaskPlan(rows[::-1], spec, scores, blank=3).masks(epoch)[::-1]
    assert all((a == b).all() for a, b in zip(masks, back))


@many
@given(examples(), specs)
def test_inputs(rows, spec):
    "What each mode does to ids and labels; prompt never, tags and end token always."
    scores = made_scores(rows, spec)
    for r, got, m in zip(rows, MaskPlan(rows, spec, scores, blank=3).inputs(), MaskPlan(rows, spec, scores, blank=3).masks()):
        ids, kinds = np.array(r['input_ids']), np.concatenate([[k]*(b - a) for a, b, k in r['spans']])
        assert (got['input_ids'] == np.where(m & (spec.mode != 'loss'), 3, ids)).all()
        assert (got['labels'] == np.where((kinds == 'prompt') | (m & (spec.mode != 'input')), IGNORE, ids)).all()
        assert (got['labels'][np.isin(kinds, ['tag', 'eos'])] != IGNORE).all()
        if spec.mode == 'loss': assert (got['labels'] == labels(r, m, spec.target)).all()
        alone = model_inputs(r, spec, 0, 3, scores)
        assert all((alone[k] == got[k]).all() for k in got)


@many
@given(examples(), specs, st.floats(0, 1))
def test_nested_rates(rows, spec, other):
    "The mask of the lower rate is part of the mask of the higher one."
    from dataclasses import replace
    low, high = sorted([spec.rate, other])
    scores = made_scores(rows, spec)
    a, b = (MaskPlan(rows, replace(spec, rate=r), scores, blank=3).masks() for r in (low, high))
    assert all((x <= y).all() for x, y in zip(a, b))


def long_examples(n: int, size: int) -> list:
    "n examples with one long critique each."
    spans = [[0, 1, 'prompt'], [1, 2, 'tag'], [2, 2 + size, 'critique'], [2 + size, 3 + size, 'eos']]
    return [dict(id=f'r{i}:critique', layout='critique', problem_id='p', input_ids=[5]*(size + 3), spans=spans, words=[]) for i in range(n)]


@pytest.mark.parametrize('draw', CHOICES['draw'])
def test_independence(draw):
    "Fixed seeds: share, spread of the counts, and correlation between examples, epochs, seeds and neighbouring tokens, all within five deviations."
    rows, p = long_examples(500, 300), .2
    x = np.array([m[2:302] for m in MaskPlan(rows, MaskSpec(p, draw=draw, schedule='per_epoch')).masks(0)])
    if draw == 'bernoulli':
        assert abs(x.mean() - p) < 5*(p*(1 - p)/x.size)**.5
        assert abs(x.sum(1).var(ddof=1)/(300*p*(1 - p)) - 1) < 5*(2/499)**.5
    else: assert (x.sum(1) == 60).all()
    assert abs(x.mean(0).var(ddof=1)/(p*(1 - p)/500) - 1) < 5*(2/299)**.5                     # no place is preferred
    others = [MaskPlan(rows, MaskSpec(p, draw=draw, schedule='per_epoch', seed=s)).masks(e) for s, e in ((0, 1), (1, 0))]
    pairs = [(x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), *((x, np.array([m[2:302] for m in o])) for o in others)]
    for a, b in pairs:
        z = ((a - p)*(b - p)).sum()/(p*(1 - p)*a.size**.5)
        assert abs(z) < 5 + (300/299 if draw == 'exact' else 0)*a.shape[0]**.5/300**.5, z       # neighbours of an exact share repel each other slightly


def test_presets():
    "All of them draw, keep prompt, tags and end token, and differ from each other."
    rows = [encode(row(str(i)), TOKENIZERS['bpe'], 'critique') for i in range(40)]
    seen = set()
    for name in PRESETS:
        spec = preset(name, seed=1)
        ids, y = MaskPlan(rows, spec, made_scores(rows, spec), mask_id(TOKENIZERS['bpe'])).flat()
        seen.add((ids.tobytes(), y.tobytes()))
    assert len(seen) == len(PRESETS)


def test_scores_belong_to_their_rows():
    "Every score of every kind fits the mask that goes by it."
    import torch
    from types import SimpleNamespace
    model = lambda input_ids: SimpleNamespace(logits=torch.nn.functional.one_hot((input_ids*3 + 1) % 500, 500).float())
    rows = encode_rows([row(), row('2', critique=TEXT[0])], TOKENIZERS['bpe'], 'critique')
    for score in SCORES:
        for target in ('critique', 'critique+reasoning') if score != 'loss' else ('critique+reasoning+answer',):
            got = {r['id']: r['values'] for r in score_rows(_Device(model), rows, score, target)}
            for order in ('high', 'low'):
                spec = MaskSpec(.3, unit='sentence', draw='exact', by=f'{score}_{order}', target=target)
                assert MaskPlan(rows, spec, got).masks()[0].any()


class _Device:
    "A function as a model."
    device = 'cpu'
    def __init__(self, f): self.f = f
    def __call__(self, input_ids): return self.f(input_ids)


# --- the reader's view, somebody else's script, speed

def test_view_escapes_and_marks():
    "Text of the rows cannot become HTML; every character is shown, for tokenizers of every kind."
    from html import unescape
    for name, tok in TOKENIZERS.items():
        e = encode(row(critique='<script>alert(1)</script> & "so" 👍🏽 on.'), tok, 'critique')
        got = model_inputs(e, MaskSpec(.5, mode='both'), blank=tok.pad_token_id)
        html = show_example(e, got['labels'], tok, got['input_ids']).data
        assert '<script' not in html and 'dashed' in html
        body = re.sub(r'<[^>]+>', '', html.split('overflow-wrap:anywhere">')[1])
        assert unescape(body).replace('⏎', '') == tok.decode(e['input_ids'], clean_up_tokenization_spaces=False), name


def snippet() -> str:
    "The ten lines of the notebook."
    text = next(c.source for c in cells('03_masking.ipynb') if c.cell_type == 'markdown' and "In somebody else's script" in c.source)
    return re.search(r'```python\n(.*?)```', text, re.S)[1]


def test_in_somebody_elses_script(tmp_path):
    "The snippet trains a model that is not ours, with its own tokenizer, and the mask reaches TRL's batches."
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    torch.manual_seed(0)
    tok = TOKENIZERS['qwen']
    tok.save_pretrained(tmp_path/'model')
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tok), hidden_size=16, num_hidden_layers=1, intermediate_size=32, num_attention_heads=2,
                                 num_key_value_heads=2)).save_pretrained(tmp_path/'model')
    code = snippet()
    assert code in (ROOT/'docs'/'pages'/'howto_model.md').read_text(encoding='utf-8'), 'the page shows another snippet than the notebook'
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(('from', 'import', ' '))]) <= 10
    code = code.replace('"your/model"', repr(str(tmp_path/'model'))).replace('SFTConfig("out"', 'SFTConfig("out", use_cpu=True, report_to="none"')
    code += '\nimport json\nt = SFTTrainer(model, SFTConfig("o", max_length=None, use_cpu=True, report_to="none"), train_dataset=data, processing_class=tok)\n'
    code += 'print("LABELS", json.dumps([b["labels"].tolist() for b in t.get_train_dataloader()][0][0]), json.dumps(data[0]["labels"]))'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, env={**__import__('os').environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    batch, ready = (json.loads(x) for x in re.search(r'LABELS (\[.*?\]) (\[.*?\])', done.stdout).groups())
    e = encode(dict(row(), rollout='3 + 4 = 7. 7 * 2 = 15.'), tok, 'critique')
    assert batch == ready and len(ready) == len(e['input_ids'])
    kinds = [k for a, b, k in e['spans'] for _ in range(b - a)]
    assert {k for k, y in zip(kinds, ready) if y == IGNORE} == {'prompt', 'critique'}


def test_no_torch():
    "Encoding and masking are importable without torch and transformers."
    code = 'import sys, mcft.masking, mcft.scores; sys.exit(bool({"torch", "transformers", "trl"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_committed_rows():
    "The committed file is what this version encodes."
    from mcft.masking import load_tokenizer
    rows = read_rows('data/pocket/encoded.jsonl', 'encoded')
    sources = {r['id']: r for r in read_rows('data/pocket/critiques.jsonl', 'critiques')}
    some = rows[::40]
    tok = load_tokenizer('data/pocket/base')
    assert some == [encode(sources[e['id'].rsplit(':', 1)[0]], tok, e['layout']) for e in some]


def test_bench_small():
    "The measurement runs and gives its rows."
    from measure.bench_encoding import measure
    assert {r['name'] for r in measure(True)} >= {'tokens per second, encode + draw', 'speed, one new draw'}
