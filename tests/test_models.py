"Tokenizers and checkpoints of the shapes that people have: what loads, and what an error says."

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mcft.core import resolve
from mcft.generate import BackendConfig, Prompt, Sampling, generate, make_backend
from mcft.models import (INDEX, PROBE, chat_prompt, check_end_token, check_system, check_vocabulary, dequantise,
                         find_checkpoint, gguf_header, load_model, load_tokenizer, lost_text, opens_think, prompt_ids,
                         ready_copy, render_prompts, turn_end, what_else)
from mcft.pocket import BaseConfig, make_model

BASE = 'data/pocket/base'
ROLES = dict(bos_token='<s>', eos_token='</s>')
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{{ "
    "m['content'].split('</think>')[-1] }}{{ eos_token }}"
    "{% else %}<|{{ m['role'] }}|>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt "
    "%}<|assistant|><think>\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif "
    "%}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim "
    "}}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GRANITE = (
    "{% for m in messages %}<|start_of_role|>{{ m['role'] }}<|end_of_role|>{{ m['content'] }}<|end_of_text|>\n{% "
    "endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)


def byte_level(*special) -> Tokenizer:
    "A small vocabulary over bytes."
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(
        [PROBE],
        trainers.BpeTrainer(vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet,
                            show_progress=False),
    )
    return t


def pieces(normaliser=None) -> Tokenizer:
    "A vocabulary of the SentencePiece kind, with bytes for what it does not know."
    t = Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=True))
    t.normalizer = normaliser or normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    t.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    special = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256))]
    t.train_from_iterator(
        [PROBE.replace(' ', '▁')], trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    return t


def word_pieces() -> Tokenizer:
    "A vocabulary of BERT's kind: white space is gone."
    t = Tokenizer(models.WordPiece(unk_token='[UNK]'))
    t.pre_tokenizer, t.decoder, t.normalizer = (
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
        normalizers.BertNormalizer(),
    )
    t.train_from_iterator(
        [PROBE], trainers.WordPieceTrainer(vocab_size=300, special_tokens=['[UNK]'], show_progress=False)
    )
    return t


def save(folder: Path, tokenizer: Tokenizer, template: str = '', **config) -> Path:
    "Write a tokenizer as a checkpoint has it."
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps(dict(tokenizer_class='PreTrainedTokenizerFast') | config))
    if template:
        (folder / 'chat_template.jinja').write_text(template)
    return folder


def with_added(tokenizer: Tokenizer, *tokens) -> Tokenizer:
    tokenizer.add_special_tokens(list(tokens))
    return tokenizer


def lower(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


KEEPS = dict(
    bytes=lambda: (byte_level('<s>', '</s>'), ROLES),
    bytes_by_a_gpt2_class=lambda: (byte_level('<s>', '</s>'), ROLES | dict(tokenizer_class='GPT2Tokenizer')),
    bytes_by_a_qwen_class=lambda: (byte_level('<s>', '</s>'), ROLES | dict(tokenizer_class='Qwen2Tokenizer')),
    cleaned_up=lambda: (byte_level('<s>', '</s>'), ROLES | dict(clean_up_tokenization_spaces=True)),
    cleaned_up_by_force=lambda: (
        byte_level('<s>', '</s>'),
        ROLES
        | dict(
            clean_up_tokenization_spaces=True,
            clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
        ),
    ),
    pieces=lambda: (pieces(), ROLES | dict(unk_token='<unk>')),
    pieces_by_a_llama_class=lambda: (pieces(), ROLES | dict(unk_token='<unk>', tokenizer_class='LlamaTokenizer')),
    pieces_with_tags=lambda: (with_added(pieces(), '<think>', '</think>'), ROLES | dict(unk_token='<unk>')),
    lower_case=lambda: (lower(byte_level('<s>', '</s>')), ROLES),
)


@pytest.mark.parametrize('name', KEEPS)
def test_a_tokenizer_that_keeps_text_up_to_its_own_normaliser_loads(tmp_path, name):
    tokenizer, config = KEEPS[name]()
    assert lost_text(load_tokenizer(save(tmp_path, tokenizer, **config))) == ''


@pytest.mark.parametrize('kind', ['LlamaTokenizer', 'LlamaTokenizerFast'])
def test_a_llama_class_over_bytes_loses_spaces_and_the_class_that_keeps_them_is_named(tmp_path, kind):
    folder = save(tmp_path / 'model', byte_level('<s>', '</s>'), tokenizer_class=kind, **ROLES)
    with pytest.raises(
        ValueError, match=r"'What is 2 plus 3' comes back as 'Whatis2plus3.*tokenizer_class='PreTrainedTokenizerFast'"
    ) as e:
        load_tokenizer(folder)
    assert 'special tokens' not in str(e.value)
    assert load_tokenizer(folder, tokenizer_class='PreTrainedTokenizerFast').decode([]) == ''


def test_a_tokenizer_that_no_option_mends(tmp_path):
    with pytest.raises(ValueError, match='loses text.*no option of transformers gives the text back'):
        load_tokenizer(save(tmp_path, word_pieces(), unk_token='[UNK]'))
    short = Tokenizer(models.WordLevel({'<unk>': 0, 'What': 1}, unk_token='<unk>'))
    with pytest.raises(ValueError, match="no piece for some characters and writes '<unk>'"):
        load_tokenizer(save(tmp_path / 'short', short, unk_token='<unk>'))


def chat(folder: Path, template: str, *special, **roles):
    return load_tokenizer(save(folder, byte_level(*special), template, **roles))


@pytest.mark.parametrize(
    'template, roles',
    [
        (CHATML, dict(bos_token='<|im_start|>', eos_token='<|im_end|>')),
        (GRANITE, dict(bos_token='<|end_of_text|>', eos_token='<|end_of_text|>')),
        (DEEPSEEK, ROLES),
        (GEMMA, dict(bos_token='<bos>', eos_token='<end_of_turn>')),
    ],
)
def test_only_a_doubled_beginning_token_is_a_fault(tmp_path, template, roles):
    tok = chat(tmp_path, template, *dict.fromkeys(roles.values()), **roles)
    prompt = chat_prompt(tok, 'What is 2 plus 3?')
    assert tok.decode(prompt_ids(tok, prompt)) == prompt
    with pytest.raises(ValueError, match='[23] BOS tokens .* at the start of the prompt'):
        prompt_ids(tok, tok.bos_token * 2 + prompt.removeprefix(tok.bos_token))
    assert render_prompts(tok, ['a', 'b']) == [chat_prompt(tok, 'a'), chat_prompt(tok, 'b')]


def test_an_end_token_that_begins_a_turn_is_an_error_and_the_template_has_the_right_one(tmp_path):
    folder = save(
        tmp_path,
        byte_level('<|endoftext|>', '<|im_start|>', '<|im_end|>'),
        CHATML,
        bos_token='<|im_start|>',
        eos_token='<|im_start|>',
    )
    with pytest.raises(
        ValueError,
        match=r"end token .* is '<\|im_start\|>', but .* ends an assistant turn with "
              r"'<\|im_end\|>'.*end_token=\"template\"",
    ):
        load_tokenizer(folder)
    tok = load_tokenizer(folder, end_token='template')
    assert tok.eos_token == turn_end(tok) == '<|im_end|>'
    assert load_tokenizer(folder, end_token='<|endoftext|>').eos_token == '<|endoftext|>'
    with pytest.raises(ValueError, match='is no token of'):
        load_tokenizer(folder, end_token='<|stop|>')


def test_another_end_token_is_said(tmp_path):
    with pytest.warns(UserWarning, match="'<end_of_turn>'.*stop at '<eos>'"):
        tok = chat(tmp_path, GEMMA, '<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>', bos_token='<bos>',
                   eos_token='<eos>')
    assert turn_end(tok) == '<end_of_turn>'


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('template', ['', '{{ messages[0].content }}', GRANITE, DEEPSEEK])
def test_an_end_token_that_agrees_or_cannot_be_compared_is_no_warning(tmp_path, template):
    end = '<|end_of_text|>'
    check_end_token(chat(tmp_path, template, '<s>', end, bos_token='<s>', eos_token=end))


def test_a_system_turn_that_is_refused_or_dropped_is_told_before_the_weights_are_read(tmp_path):
    refuses = chat(tmp_path / 'a', GEMMA, '<bos>', '<end_of_turn>', bos_token='<bos>', eos_token='<end_of_turn>')
    with pytest.raises(ValueError, match=r'System role not supported; leave the system turn empty'):
        check_system(refuses, 'Be brief')
    drops = chat(tmp_path / 'b', '{{ messages[-1].content }}', '<s>', '</s>', **ROLES)
    with pytest.raises(ValueError, match=r"drops the system turn 'Be brief'"):
        check_system(drops, 'Be brief')
    check_system(drops, '')
    for name in ('config.json', 'model.safetensors'):
        os.symlink(resolve(BASE) / name, tmp_path / 'a' / name)
    backend = make_backend(BackendConfig(str(tmp_path / 'a')))
    with pytest.raises(ValueError, match='System role not supported'):
        next(backend.generate([Prompt('2 + 3?', 'Be brief')]))
    assert 'model' not in vars(backend)


def test_a_thought_that_the_template_opens_is_in_the_row(tmp_path):
    tok = chat(tmp_path, DEEPSEEK, '<s>', '</s>', **ROLES)
    assert opens_think(tok) == '<think>\n'
    model = make_model(BaseConfig(), load_tokenizer(BASE)).eval()
    tok.add_tokens([f'<{i}>' for i in range(model.config.vocab_size - len(tok))])
    (row,) = next(generate(model, tok, [chat_prompt(tok, 'What is 2 plus 3?')], Sampling(max_new_tokens=8)))
    assert row['text'].startswith('<think>\n') and row['n_tok'] <= 8


# checkpoints


def touch(folder: Path, *names) -> Path:
    for n in names:
        (folder / n).parent.mkdir(parents=True, exist_ok=True)
        (folder / n).touch()
    return folder


@pytest.mark.parametrize(
    'names, said',
    [
        (
            ['config.json', 'pytorch_model.bin', 'tokenizer.json'],
            r'pytorch_model.bin is weights as a pickle.*never opened',
        ),
        (['config.json', 'pytorch_model-00001-of-00002.bin', 'pytorch_model.bin.index.json'], 'is weights as a pickle'),
        (['consolidated.00.pth', 'params.json', 'tokenizer.model'], 'consolidated.00.pth is weights as a pickle'),
        (['weights.pt'], 'weights.pt is weights as a pickle'),
        (['adapter_config.json', 'adapter_model.safetensors', 'tokenizer.json'], 'is a LoRA adapter.*merge_and_unload'),
        (['adapter_config.json', 'adapter_model.bin', 'README.md'], 'is a LoRA adapter'),
        (
            ['optimizer.pt', 'scheduler.pt', 'rng_state.pth', 'trainer_state.json', 'training_args.bin'],
            'state of a training run',
        ),
        (['global_step10/zero_pp_rank_0.pt', 'latest', 'zero_to_fp32.py'], 'state of a training run'),
        (['__0_0.distcp', '.metadata'], 'state of a training run'),
        (['config.json', 'model.onnx'], 'is an ONNX export'),
        (['config.json', 'flax_model.msgpack'], 'for Flax or TensorFlow'),
        (['tokenizer.json', 'tokenizer_config.json'], 'belongs to a tokenizer; there is no model'),
        (['config.json', 'tokenizer.json'], 'holds config.json, tokenizer.json: if a run should write weights here'),
        (['config.json', 'consolidated.safetensors'], 'not a name that transformers knows: call it model.safetensors'),
        (['model_index.json'], 'diffusion pipeline'),
        (
            ['config.json', 'checkpoint-500/model.safetensors', 'checkpoint-500/config.json'],
            'its weights are in .*checkpoint-500: name that folder',
        ),
        (['refs/main', 'snapshots/abc/model.safetensors'], 'its weights are in .*snapshots/abc'),
        ([], 'it is empty'),
    ],
)
def test_a_folder_without_loadable_weights_says_what_it_holds(tmp_path, names, said):
    touch(tmp_path, *names)
    with pytest.raises(FileNotFoundError, match='holds no .*' + said):
        find_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=said):
        load_model(tmp_path)
    assert what_else(tmp_path)


@pytest.mark.parametrize(
    'name, said',
    [
        ('model.safetensors', 'is one file of a checkpoint: name its folder'),
        ('model.bin', 'weights as a pickle'),
        ('model.onnx', 'ONNX'),
        ('notes.txt', 'no checkpoint'),
    ],
)
def test_a_file_is_no_folder(tmp_path, name, said):
    with pytest.raises(ValueError, match=said):
        find_checkpoint(touch(tmp_path, name) / name)


def test_files_that_are_not_whole(tmp_path):
    base = resolve(BASE)
    whole = (base / 'model.safetensors').read_bytes()
    (tmp_path / 'config.json').write_bytes((base / 'config.json').read_bytes())
    for content, said in (
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git lfs pull'),
        (whole[:1000], 'cut short'),
        (b'', 'cut short'),
        (whole[:-10], 'its own header says'),
        (struct.pack('<Q', 2**60) + b'{}', 'cut short'),
    ):
        (tmp_path / 'model.safetensors').write_bytes(content)
        with pytest.raises(ValueError, match=said):
            find_checkpoint(tmp_path)
    (tmp_path / 'model.safetensors').write_bytes(whole)
    (tmp_path / 'config.json').unlink()
    with pytest.raises(FileNotFoundError, match='no config.json'):
        find_checkpoint(tmp_path)


def test_tokenizer_files_that_are_not_there_or_not_whole(tmp_path):
    (tmp_path / 'model.safetensors').touch()
    with pytest.raises(FileNotFoundError, match='holds no tokenizer'):
        load_tokenizer(tmp_path)
    save(tmp_path, byte_level('<s>', '</s>'), **ROLES)
    pointer = 'version https://git-lfs.github.com/spec/v1'
    for content, said in ((pointer, 'git lfs pull'), ('{"model": ', 'is not JSON')):
        (tmp_path / 'tokenizer.json').write_text(content)
        with pytest.raises(ValueError, match=said):
            load_tokenizer(tmp_path)


def test_shards_load_and_a_missing_one_is_named(tmp_path):
    model = load_model(BASE)
    model.save_pretrained(tmp_path, max_shard_size='2MB')
    assert len(list(tmp_path.glob('*.safetensors'))) > 1
    again = load_model(tmp_path, dtype='float32')
    assert all(torch.equal(a.float(), b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    last = sorted(tmp_path.glob('*.safetensors'))[-1]
    last.unlink()
    with pytest.raises(FileNotFoundError, match=f'{last.name} is missing, one of'):
        load_model(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match='put model.safetensors.index.json beside the parts'):
        load_model(tmp_path)


def test_quantised_weights_are_not_trained(tmp_path):
    load_model(BASE).save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(
        json.dumps(config | dict(quantization_config=dict(quant_method='awq', bits=4)))
    )
    with pytest.raises(ValueError, match=r'quantised weights \(awq\).*cannot be trained in float32'):
        load_model(tmp_path, dtype='float32')
    (tmp_path / 'config.json').write_text(json.dumps(config | dict(quantization=dict(bits=4, group_size=64))))
    with pytest.raises(ValueError, match='quantised weights'):
        load_model(tmp_path, dtype='float32')


def test_tokens_beyond_the_embedding():
    tok = load_tokenizer(BASE)
    tok.add_special_tokens(dict(additional_special_tokens=['<image>']))
    check_vocabulary(tok, 512)  # as Gemma 3 has one: no text makes it
    tok.add_tokens(['<step>'])
    with pytest.raises(ValueError, match="'<step>' among them.*do not belong together"):
        check_vocabulary(tok, 512, 'm')


# GGUF


def write_gguf(path: Path, arch: str = 'llama', **more) -> Path:
    "A Llama of one layer with a byte-level vocabulary, ChatML and end token <|im_end|>, as llama.cpp writes it."
    gguf = pytest.importorskip('gguf', reason='needs the package gguf')
    tokenizer = json.loads(byte_level('<|endoftext|>', '<|im_start|>', '<|im_end|>').to_str())['model']
    tokens, rng = list(tokenizer['vocab']), np.random.default_rng(0)
    w = gguf.GGUFWriter(str(path), arch)
    w.add_name('tiny')
    for key, value in dict(context_length=128, embedding_length=32, block_count=1, feed_forward_length=64, head_count=2,
                           head_count_kv=2, vocab_size=len(tokens), rope_dimension_count=16).items():
        getattr(w, f'add_{key}')(value)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_tokenizer_model('gpt2')
    w.add_token_list(tokens)
    w.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    w.add_token_merges([' '.join(m) for m in tokenizer['merges']])
    for role, i in dict(bos=1, eos=2, unk=0, pad=2).items():
        getattr(w, f'add_{role}_token_id')(i)
    w.add_chat_template(CHATML)
    for key, value in more.items():
        w.add_string(key.replace('_', '.', 1), value) if isinstance(value, str) else w.add_uint16(
            key.replace('_', '.', 1), value
        )
    shapes = {'token_embd': (len(tokens), 32), 'blk.0.ffn_gate': (64, 32), 'blk.0.ffn_up': (64, 32),
              'blk.0.ffn_down': (32, 64)}
    shapes |= {f'blk.0.attn_{k}': (32, 32) for k in ('q', 'k', 'v', 'output')}
    for name, shape in shapes.items():
        values = rng.normal(0, 0.02, shape).astype(np.float32)
        w.add_tensor(
            f'{name}.weight',
            gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0),
            raw_dtype=gguf.GGMLQuantizationType.Q8_0,
        )
    for name in ('output_norm', 'blk.0.attn_norm', 'blk.0.ffn_norm'):
        w.add_tensor(f'{name}.weight', np.ones(32, np.float32))
    for step in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file, w.close):
        step()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def test_a_gguf_file_loads_and_is_dequantised_once(tmp_path, cache):
    folder = tmp_path / 'model'
    folder.mkdir()
    path = write_gguf(folder / 'tiny.Q8_0.gguf')
    tok, model = load_tokenizer(path), load_model(folder, dtype='float32')
    assert (tok.bos_token, tok.eos_token) == ('<|im_start|>', '<|im_end|>') and tok.chat_template == CHATML
    assert model.generation_config.eos_token_id == tok.eos_token_id and model.dtype == torch.float32
    check_vocabulary(tok, model.get_input_embeddings().num_embeddings)
    made = dequantise(path)
    assert made.is_relative_to(cache) and [f.name for f in folder.iterdir()] == [path.name]
    assert [d.name for d in made.parent.iterdir()] == [made.name]
    before = (made / 'model.safetensors').stat().st_mtime_ns
    model.save_pretrained(tmp_path / 'saved')  # an ordinary model: it can be trained and saved
    assert load_model(path).state_dict().keys() == load_model(tmp_path / 'saved').state_dict().keys()
    assert (made / 'model.safetensors').stat().st_mtime_ns == before
    (row,) = next(make_backend(BackendConfig(str(path))).generate(['What is 2 plus 3?'], Sampling(max_new_tokens=4)))
    assert row['n_tok'] <= 4


def test_the_values_are_those_of_the_file(tmp_path, cache):
    gguf = pytest.importorskip('gguf', reason='needs the package gguf')
    path = write_gguf(tmp_path / 'tiny.gguf')
    found = next(t for t in gguf.GGUFReader(str(path)).tensors if t.name == 'blk.0.ffn_up.weight')
    expected = gguf.dequantize(found.data, found.tensor_type)
    assert np.array_equal(load_model(path).state_dict()['model.layers.0.mlp.up_proj.weight'].numpy(), expected)


def test_a_gguf_file_that_is_no_whole_model(tmp_path, cache):
    for name, how, said in (
        ('arch', dict(arch='starcoderx'), "architecture 'starcoderx'.*take the safetensors"),
        ('lora', dict(general_type='adapter'), 'GGUF adapter'),
        ('part', {'split_count': 3}, 'one of 3 parts.*--merge'),
    ):
        path = write_gguf(tmp_path / f'{name}.gguf', **how)
        with pytest.raises(ValueError, match=said):
            load_tokenizer(path)
    cut = tmp_path / 'cut.gguf'
    cut.write_bytes((tmp_path / 'lora.gguf').read_bytes()[:500])
    for content in (cut.read_bytes(), b'not a model', b''):
        cut.write_bytes(content)
        with pytest.raises(ValueError, match='cannot be read as GGUF'):
            gguf_header(cut)
    with pytest.raises(ValueError, match='holds 4 GGUF files'):
        find_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match='there is no such file'):
        find_checkpoint(tmp_path / 'none.gguf')


def test_without_the_package_gguf_its_name_is_told(tmp_path, cache, monkeypatch):
    path = write_gguf(tmp_path / 'tiny.gguf')
    monkeypatch.setitem(__import__('sys').modules, 'gguf', None)
    with pytest.raises(ImportError, match='pip install'):
        dequantise(path)


def test_a_ready_copy_has_the_options_written_down(tmp_path):
    src = save(
        tmp_path / 'src',
        byte_level('<|im_start|>', '<|im_end|>'),
        CHATML,
        bos_token='<|im_start|>',
        eos_token='<|im_start|>',
    )
    for name in ('config.json', 'model.safetensors', 'generation_config.json'):
        (src / name).write_bytes((resolve(BASE) / name).read_bytes())
    with pytest.raises(ValueError, match='ready_copy'):
        load_tokenizer(src)
    out = ready_copy(src, tmp_path / 'out', tokenizer_class='PreTrainedTokenizerFast', end_token='template')
    tok = load_tokenizer(out)
    assert tok.eos_token == '<|im_end|>' and lost_text(tok) == ''
    assert tok.eos_token_id in json.loads((out / 'generation_config.json').read_text())['eos_token_id']
    assert (out / 'model.safetensors').samefile(src / 'model.safetensors')
    with pytest.raises(FileExistsError, match='name a new folder'):
        ready_copy(src, out)


TURNS = '{% for m in messages %}<|im_start|>{{ m.role }}\n%s<|im_end|>\n{% endfor %}'
HEADER = '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
ALTERED = [
    ('{{ m.content[0].text }}', 'changes the user'),  # takes a list of parts: the question would be missing
    ('{{ m.content | upper }}', 'changes the user'),
    ("{{ m.content.split('?')[0] }}", 'changes the user'),
    ('{{ m.content[:10] }}', 'changes the user'),
    ("{{ m.content | replace('\\n', ' ') }}", 'changes the user'),
    ('{{ m.content | e }}', 'changes the user'),
    ('', 'changes the user'),
]


@pytest.mark.parametrize('content, said', ALTERED)
def test_a_template_that_loses_the_question_is_told(tmp_path, content, said):
    tok = chat(tmp_path, TURNS.replace('%s', content) + HEADER, '<|im_start|>', '<|im_end|>', eos_token='<|im_end|>')
    with pytest.raises(ValueError, match=said):
        chat_prompt(tok, 'Is 2 < 3?\n\nSay yes or no.')


def test_a_template_without_a_header_is_told_before_the_weights_are_read(tmp_path):
    plain = TURNS.replace('%s', '{{ m.content }}')
    tok = chat(tmp_path, plain, '<|im_start|>', '<|im_end|>', eos_token='<|im_end|>')
    with pytest.raises(ValueError, match="before the assistant's text"):
        check_system(tok, '')
