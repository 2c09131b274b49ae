"""Encoding and drawing masks, held against the bare tokenizer and against encoding.

Two sets of examples of layout `critique`: the committed critiques of the pocket world with the pocket model's
tokenizer (512 entries), and examples put together from the prose and code of the project's notebooks, some 2,500
tokens each, with tokenizers trained here on that text: a byte-level BPE in the layout of Qwen's and a Unigram model in
SentencePiece's. Encoding asks the tokenizer for offsets and names every token by them, one example at a time, which
keeps the code short and costs as much again as the bare tokenizer: about a second for a thousand long examples, once
per data set."""

import itertools
import json
import random
import string

from measure.rows import ROOT, bench_row, paired


SPECIAL = ['<pad>', '<s>', '</s>', '<unk>', '<|user|>', '<|assistant|>']  # control tokens: no text may hold them


def prose() -> list[str]:
    "Cells of the project's notebooks, without those that name a tag of ours or a control token."
    from mcft.format import TAGS

    found = [
        ''.join(c['source']).strip()
        for f in sorted((ROOT / 'nbs').rglob('*.ipynb'))
        for c in json.loads(f.read_text(encoding='utf-8'))['cells']
    ]
    return [t for t in found if len(t) > 40 and not any(tag in t for tag in (*TAGS, 'think>', *SPECIAL))]


def bench_tokenizer(kind: str, texts: list[str], n_vocab: int):
    "A tokenizer trained on the texts, with turn markers and a chat template."
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    common = dict(vocab_size=n_vocab, special_tokens=SPECIAL, show_progress=False)
    if kind == 'BPE':
        split = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
            r"\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        t, trainer = (
            Tokenizer(models.BPE()),
            trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common),
        )
        t.normalizer, t.decoder = normalizers.NFC(), decoders.ByteLevel()
        t.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), 'isolated'),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        t, trainer = (
            Tokenizer(models.Unigram()),
            trainers.UnigramTrainer(unk_token='<unk>', initial_alphabet=list(string.printable), **common),
        )
        t.normalizer, t.pre_tokenizer, t.decoder = normalizers.NFKC(), pre_tokenizers.Metaspace(), decoders.Metaspace()
    t.train_from_iterator(texts, trainer)
    tok = PreTrainedTokenizerFast(tokenizer_object=t, bos_token='<s>', eos_token='</s>', pad_token='<pad>')
    tok.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return tok


def long_rows(texts: list[str], n: int) -> list[dict]:
    "Rows as long as real ones: every part is some of the texts."
    rng = random.Random(0)

    def some(k):
        return '\n'.join(rng.choice(texts) for _ in range(k))

    return [
        dict(
            id=f'long-{i}',
            question=some(1),
            rollout=some(4),
            critique=some(5),
            reasoning=some(4),
            answer=str(rng.randint(0, 99)),
        )
        for i in range(n)
    ]


def rows_for(name: str, tok, rows: list[dict], n: int) -> list[dict]:
    "The benchmark rows of one tokenizer."
    from mcft.encode import encode_rows, example_pairs
    from mcft.mask import MaskPlan, MaskSpec

    texts = [pair.x + pair.y for pair in example_pairs(rows, tok, 'critique')]
    batches = [slice(i, i + 64) for i in range(0, len(rows), 64)]

    def bare():
        return [e.ids for b in batches for e in tok.backend_tokenizer.encode_batch(texts[b], add_special_tokens=False)]

    def encoded():
        return [e for b in batches for e in encode_rows(rows[b], tok, 'critique')]

    made = encoded()
    if [e['input_ids'] for e in made] != bare():
        raise AssertionError('the two sides do not tokenize alike')
    plan, epoch = MaskPlan(made, MaskSpec(0.2, mask_schedule='per_epoch')), itertools.count()
    drawn = paired(lambda: MaskPlan(encoded(), MaskSpec(0.2)).flat(), bare, n)
    again = paired(lambda: [plan.flat(next(epoch)) for _ in range(10)], encoded, n)
    return [
        bench_row('tokens per second, encode + draw', f'bare tokenizer (tokenizers), {name}', drawn, '>= 0.3'),
        bench_row('speed, one new draw', f'encoding, {name}', [10 * x for x in again], '>= 50'),
    ]


def measure(
    small: bool,  # the size of the tests
) -> list[dict]:  # rows of benchmarks
    "Every tokenizer; the same texts, the same batches on both sides."
    from mcft.core import read_rows
    from mcft.models import load_tokenizer

    rows = [r for r in read_rows('data/pocket/critiques.jsonl', 'critiques') if r['status'] == 'kept']
    texts, n = prose(), 3 if small else 11
    longer = long_rows(texts, 8 if small else 64)
    out = rows_for('pocket tokenizer', load_tokenizer('data/pocket/base'), rows[: 24 if small else None], n)
    for kind in ('BPE',) if small else ('BPE', 'Unigram'):
        tok = bench_tokenizer(kind, texts[:100] if small else texts, 1000 if small else 8000)
        out += rows_for(f'{kind} of {len(tok):,} entries', tok, longer, n)
    return out
