from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from maypole.core.errors import DataError, UserError
from maypole.data.chat import Dropped, Encoded, encode_chat, encode_completion, encode_prompt, encode_text

PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED_INSIDE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% generation %}{{ m.content }}"
    "<|end|>{% endgeneration %}{{ '\n' }}{% else %}{{ '<|' + m.role + '|>' + m.content + '<|end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED_OUTSIDE = MARKED_INSIDE.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>")
FORGETS_EARLIER_ANSWERS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{{ m.content if m.role == 'user' or loop.last else '...' }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK = [
    {"role": "user", "content": "who lives here?"},
    {"role": "assistant", "content": "a cat"},
    {"role": "user", "content": "and there?"},
    {"role": "assistant", "content": "a dog"},
]


def tokenizer(template: str | None = None, *, bos: bool = False, eos: bool = False) -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(t, special=True) for t in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["a cat and a dog", "who lives here?", "and there there"] * 4, trainer)
    if bos or eos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{'<|bos|> ' if bos else ''}$A{' <|eos|>' if eos else ''}",
            special_tokens=[("<|bos|>", 0), ("<|eos|>", 1)],
        )
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|bos|>", eos_token="<|eos|>")
    made.chat_template = template
    return made


def learnt(encoded: Encoded | Dropped, tok: PreTrainedTokenizerFast) -> str:
    assert isinstance(encoded, Encoded)
    assert len(encoded.ids) == len(encoded.weights)
    return str(tok.decode([i for i, w in zip(encoded.ids, encoded.weights) if w]))


@pytest.mark.parametrize("template", [PLAIN, MARKED_INSIDE, MARKED_OUTSIDE])
def test_the_loss_of_a_chat_falls_on_every_assistant_turn_and_its_end_token_only(template):
    tok = tokenizer(template)
    assert learnt(encode_chat(TALK, tok), tok) == "a cat<|end|>a dog<|end|>"


def test_marks_and_prefixes_find_the_same_tokens():
    by_prefix, by_marks = (encode_chat(TALK, tokenizer(t)) for t in (PLAIN, MARKED_INSIDE))
    assert by_prefix == by_marks


@pytest.mark.parametrize("template", [PLAIN, MARKED_INSIDE, MARKED_OUTSIDE])
def test_the_end_token_is_found_where_the_user_speaks_last(template):
    tok = tokenizer(template)
    assert learnt(encode_chat(TALK[:3], tok), tok) == "a cat<|end|>"


@pytest.mark.parametrize("template", [PLAIN, MARKED_INSIDE])
def test_a_chat_that_the_assistant_opens_is_learnt_from_its_first_words(template):
    tok = tokenizer(template)
    assert learnt(encode_chat(TALK[1:], tok), tok) == "a cat<|end|>a dog<|end|>"


def test_a_template_has_its_bos_once_though_the_tokenizer_adds_one_too():
    tok = tokenizer(PLAIN, bos=True)
    encoded = encode_chat(TALK, tok)
    assert isinstance(encoded, Encoded)
    assert encoded.ids.count(tok.bos_token_id) == 1


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_way_out():
    with pytest.raises(DataError, match=r"up to message 2 otherwise than the whole one[\s\S]*generation"):
        encode_chat(TALK, tokenizer(FORGETS_EARLIER_ANSWERS))


def test_a_template_that_refuses_a_conversation_says_why():
    picky = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}" + PLAIN
    with pytest.raises(DataError, match=r'field "messages": the chat template cannot render.*roles must alternate'):
        encode_chat([{"role": "system", "content": "x"}, *TALK], tokenizer(picky))


def test_a_tokenizer_without_template_names_the_flag_that_gives_one():
    with pytest.raises(UserError, match="--chat-template FILE"):
        encode_chat(TALK, tokenizer())


def test_chats_that_teach_nothing_are_dropped_with_the_reason():
    tok = tokenizer(PLAIN)
    assert encode_chat(TALK[:1], tok) == Dropped("no assistant turn")
    assert encode_chat([TALK[0], {"role": "assistant", "content": ""}], tok) == Dropped("empty completion")
    assert encode_chat(TALK, tok, max_length=3) == Dropped("prompt fills max_length")


def test_max_length_cuts_on_the_right():
    tok = tokenizer(PLAIN)
    whole, cut = encode_chat(TALK, tok), encode_chat(TALK, tok, max_length=20)
    assert isinstance(whole, Encoded)
    assert isinstance(cut, Encoded)
    assert (cut.ids, cut.weights) == (whole.ids[:20], whole.weights[:20])


@pytest.mark.parametrize("eos", [False, True])
def test_a_completion_is_learnt_with_one_eos_whether_or_not_the_tokenizer_adds_it(eos):
    tok = tokenizer(bos=True, eos=eos)
    encoded = encode_completion("who lives here?", " a cat", tok)
    assert learnt(encoded, tok) == " a cat<|eos|>"
    assert isinstance(encoded, Encoded)
    assert encoded.ids[0] == tok.bos_token_id
    assert encoded.start == len(encode_prompt("who lives here?", tok))


def test_eos_and_bos_written_in_the_text_are_not_doubled():
    tok = tokenizer(bos=True)
    ids = encode_text("<|bos|>a cat<|eos|>", tok)
    assert (ids.count(tok.bos_token_id), ids.count(tok.eos_token_id)) == (1, 1)


def test_a_token_that_straddles_prompt_and_completion_is_learnt():
    tok = tokenizer()
    encoded = encode_completion("and the", "re there", tok)
    assert isinstance(encoded, Encoded)
    joined = encode_text("and there there", tok)
    assert encoded.ids == joined
    assert learnt(encoded, tok) == " there there<|eos|>"


def test_a_completion_without_prompt_or_bos_gives_its_first_token_no_weight():
    tok = tokenizer()
    encoded = encode_completion("", "a cat", tok)
    assert isinstance(encoded, Encoded)
    assert encoded.weights == [0.0] + [1.0] * (len(encoded.ids) - 1)


@pytest.mark.parametrize("prompt", ["who lives here?", TALK[:1]])
@pytest.mark.parametrize("completion", ["a cat", TALK[1:2]])
def test_prompts_or_completions_given_as_messages_use_the_template(prompt, completion):
    tok = tokenizer(PLAIN)
    encoded = encode_completion(prompt, completion, tok)
    if isinstance(prompt, str) and isinstance(completion, str):
        assert learnt(encoded, tok) == "a cat<|eos|>"
    else:
        assert encoded == encode_chat(TALK[:2], tok)


@pytest.mark.parametrize("template", [PLAIN, MARKED_INSIDE, MARKED_OUTSIDE])
def test_in_a_completion_of_several_messages_only_its_assistant_turns_are_learnt(template):
    tok = tokenizer(template)
    assert learnt(encode_completion(TALK[:1], TALK[1:], tok), tok) == "a cat<|end|>a dog<|end|>"
    assert learnt(encode_completion(TALK[:3], "a dog", tok), tok) == "a dog<|end|>"
    assert encode_completion(TALK[:2], TALK[2:3], tok) == Dropped("no assistant turn")


def test_completions_that_teach_nothing_are_dropped_with_the_reason():
    tok = tokenizer(PLAIN)
    assert encode_completion("who lives here?", "", tok) == Dropped("empty completion")
    assert encode_completion(TALK[:1], [], tok) == Dropped("empty completion")
    assert encode_completion("who lives here?", " a cat", tok, max_length=2) == Dropped("prompt fills max_length")


def test_a_document_starts_with_the_bos_that_the_tokenizer_adds_and_ends_with_one_eos():
    plain, both = tokenizer(), tokenizer(bos=True, eos=True)
    assert encode_text("a cat", both) == [both.bos_token_id, *encode_text("a cat", plain)]
    assert encode_text("", both) == [both.bos_token_id, both.eos_token_id]
    assert encode_text("a cat", plain)[-1] == plain.eos_token_id
