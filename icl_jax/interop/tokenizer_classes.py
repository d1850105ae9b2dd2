"""Which class of transformers reads a tokenizer: a file names it, or the type of the model does.

Most classes read tokenizer.json as it stands. Those of ``tokenizer_parts`` take its vocabulary and
make the rest themselves; others that do so are refused.
"""

import json
from pathlib import Path
from typing import Any

from icl_jax.interop.json_files import optional_json

CONFIG, TOKENIZER, _MODEL = "tokenizer_config.json", "tokenizer.json", "config.json"

#: The class that reads tokenizer.json as it stands.
AS_IT_STANDS = ""

#: Class -> the model_types that transformers registers it for.
MODELS = {
    "GPT2Tokenizer": (
        "blip-2 codegen dbrx emu3 gpt2 gpt_neo gptj hyperclovax_vision_v2 instructblip "
        "instructblipvideo jais2 opt phi starcoder2"
    ),
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "Qwen2Tokenizer": (
        "audioflamingo3 colqwen2 cosmos3_omni dots3_note fun_asr_nano hunyuan_vl internvl "
        "lighton_ocr moss_transcribe_diarize ovis2 qianfan_ocr qwen2 qwen2_5_omni qwen2_5_vl "
        "qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_asr qwen3_moe qwen3_next qwen3_omni_moe "
        "qwen3_vl qwen3_vl_moe vibevoice"
    ),
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen4_exp",
    "LlamaTokenizer": "idefics idefics2",
    "GemmaTokenizer": (
        "diffusion_gemma gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma "
        "shieldgemma2 t5gemma zaya"
    ),
    "CohereTokenizer": "aya_vision cohere cohere2",
    "BertTokenizer": (
        "align bark bert blip bros chinese_clip convbert distilbert electra ernie flava git "
        "grounding-dino layoutlm megatron-bert mm-grounding-dino nezha nomic_bert qdqbert realm "
        "retribert squeezebert tvp vilt visual_bert"
    ),
    "": (
        "EvollaModel arctic aria beam bigbird_pegasus camembertv2-base canary chatlm cohere_asr "
        "ernie4_5 ernie4_5_moe flex_olmo fuyu glm glm4 glm4_moe glm4_moe_lite glm4v glm4v_moe "
        "glm_image glmasr got_ocr2 gpt_bigcode gradium_phonon_tts granite granitemoe "
        "granitemoehybrid granitemoeshared h2ovl_chat hyperclovax hyperclovax_vlm internlm2 "
        "internlm3 iquestcoder jamba kimi_k25 kimi_linear kosmos-2 llava llava_next mimo_v2_flash "
        "minicpm3 minicpm_ocr minicpmv minicpmv4_6 minicpmv4_7 minimax_m2 ministral ministral3 "
        "mistral mistral3 mistral_large4 mixtral modernbert modernbert-decoder molmo molmo2 "
        "nemo_speechlm nemotron nvfp4 nystromformer olmo2 olmo3 olmo_hybrid omniasr opencua "
        "openvla paddleocr_vl pegasus_x persimmon phi3 phi3_v phimoe pix2struct pixtral "
        "pocket_tts smolvlm stablelm step3_vl umt5 vipllava voxtral voxtral_realtime "
        "xlm-roberta-xl"
    ),
}

#: The same of classes that make a tokenizer anew in ways that are not known here.
_OTHER_MODELS = {
    "AlbertTokenizer": "albert yoso",
    "BartTokenizer": "florence2",
    "BarthezTokenizer": "barthez",
    "BartphoTokenizer": "bartpho",
    "BertGenerationTokenizer": "bert-generation",
    "BertJapaneseTokenizer": "bert-japanese",
    "BertweetTokenizer": "bertweet",
    "BigBirdTokenizer": "big_bird",
    "BioGptTokenizer": "biogpt",
    "BlenderbotSmallTokenizer": "blenderbot-small",
    "BlenderbotTokenizer": "blenderbot",
    "ByT5Tokenizer": "byt5",
    "CLIPTokenizer": (
        "aimv2 clip clipseg groupvit omdet-turbo oneformer owlv2 owlvit sam3 sam3_video xclip"
    ),
    "CTRLTokenizer": "ctrl",
    "CamembertTokenizer": "camembert",
    "CanineTokenizer": "canine",
    "ClvpTokenizer": "clvp",
    "CodeLlamaTokenizer": "code_llama",
    "CpmAntTokenizer": "cpmant",
    "CpmTokenizer": "cpm",
    "DPRQuestionEncoderTokenizer": "dpr",
    "DebertaTokenizer": "deberta",
    "DebertaV2Tokenizer": "deberta-v2",
    "DiaTokenizer": "dia",
    "EsmTokenizer": "esm",
    "EsmcTokenizer": "esmc esmfold2",
    "FNetTokenizer": "fnet",
    "FSMTTokenizer": "fsmt",
    "FlaubertTokenizer": "flaubert",
    "FunnelTokenizer": "funnel",
    "GPTNeoXJapaneseTokenizer": "gpt_neox_japanese",
    "GPTSw3Tokenizer": "gpt-sw3",
    "HerbertTokenizer": "herbert",
    "LEDTokenizer": "led",
    "LasrTokenizer": "lasr_ctc lasr_encoder",
    "LayoutLMv2Tokenizer": "layoutlmv2",
    "LayoutLMv3Tokenizer": "layoutlmv3",
    "LayoutXLMTokenizer": "layoutxlm",
    "LukeTokenizer": "luke",
    "LxmertTokenizer": "lxmert",
    "M2M100Tokenizer": "m2m_100",
    "MBart50Tokenizer": "mbart50",
    "MBartTokenizer": "mbart",
    "MLukeTokenizer": "mluke",
    "MPNetTokenizer": "mpnet",
    "MarianTokenizer": "marian",
    "MarkupLMTokenizer": "markuplm",
    "MgpstrTokenizer": "mgp-str",
    "MobileBertTokenizer": "mobilebert",
    "MvpTokenizer": "mvp",
    "MyT5Tokenizer": "myt5",
    "NllbTokenizer": "nllb nllb-moe",
    "NougatTokenizer": "nougat pp_formulanet",
    "OpenAIGPTTokenizer": "openai-gpt",
    "PLBartTokenizer": "plbart",
    "ParakeetTokenizer": (
        "granite_speech5_ctc nemotron3_5_asr nemotron_asr_streaming omniasr_ctc parakeet_ctc "
        "parakeet_rnnt parakeet_tdt"
    ),
    "PegasusTokenizer": "pegasus",
    "PerceiverTokenizer": "perceiver",
    "PhobertTokenizer": "phobert",
    "ProphetNetTokenizer": "prophetnet",
    "RagTokenizer": "rag",
    "ReformerTokenizer": "reformer",
    "RemBertTokenizer": "rembert",
    "RoCBertTokenizer": "roc_bert",
    "RoFormerTokenizer": "roformer",
    "RobertaTokenizer": (
        "bart bridgetower clap data2vec-text ibert lilt longformer mega mra roberta "
        "roberta-prelayernorm"
    ),
    "SeamlessM4TTokenizer": "seamless_m4t seamless_m4t_v2",
    "Siglip2Tokenizer": "siglip2",
    "SiglipTokenizer": "siglip",
    "Speech2TextTokenizer": "speech_to_text",
    "SpeechT5Tokenizer": "speecht5",
    "SplinterTokenizer": "splinter",
    "T5Tokenizer": "mt5 musicgen musicgen_melody switch_transformers t5",
    "TapasTokenizer": "tapas",
    "Tipsv2Tokenizer": "tipsv2",
    "UdopTokenizer": "udop",
    "VideoPrismTokenizer": "videoprism",
    "VitsTokenizer": "vits",
    "Wav2Vec2CTCTokenizer": (
        "data2vec-audio hubert unispeech unispeech-sat wav2vec2 wav2vec2-bert wav2vec2-conformer"
    ),
    "Wav2Vec2PhonemeCTCTokenizer": "wav2vec2_phoneme",
    "WhisperTokenizer": "whisper",
    "XGLMTokenizer": "xglm",
    "XLMRobertaTokenizer": "gte jina_embeddings_v3 metaclip_2 trocr xlm-roberta xmod",
    "XLMTokenizer": "xlm",
    "XLNetTokenizer": "xlnet",
}

REGISTERED = {
    model: name
    for table in (MODELS, _OTHER_MODELS)
    for name, models in table.items()
    for model in models.split()
}

#: Further such classes, by the names that files have.
OTHERS = (
    frozenset(_OTHER_MODELS)
    | {
        f"{name}Tokenizer"
        for name in (
            "Bart CodeLlama ConvBert Cpm DPRContextEncoder DPRReader FastSpeech2Conformer "
            "Longformer"
        ).split()
    }
    | {"BertTokenizerLegacy"}
)

#: Names of one class.
ALIASES = {
    **dict.fromkeys(
        (
            "DistilBertTokenizer",
            "ElectraTokenizer",
            "LayoutLMTokenizer",
            "LxmertTokenizer",
            "MobileBertTokenizer",
            "SqueezeBertTokenizer",
        ),
        "BertTokenizer",
    ),
    "CodeGenTokenizer": "GPT2Tokenizer",
    "Phi3Tokenizer": "LlamaTokenizer",
}

#: Models whose own class counts, whatever their files name.
OWN = frozenset(
    "hyperclovax_vision_v2 qwen2 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen4_exp siglip2".split()
)


def tokenizer_class(folder: Path, config: dict[str, Any]) -> str:
    """The class that makes a tokenizer anew; empty for the one that takes it as it stands.

    Args:
      folder: of the checkpoint.
      config: of tokenizer_config.json.

    Raises:
      ValueError: it is one that makes it in a way that is not known here.
    """
    found = reading_class(folder, config)
    if found not in OTHERS:
        return found
    if found == named_class(folder, config):
        file, said = (CONFIG if config.get("tokenizer_class") else _MODEL), "tokenizer_class"
    else:
        file, said = _MODEL, "model_type"
    value = (config if file == CONFIG else optional_json(folder / _MODEL)).get(said)
    raise ValueError(
        f"{folder / file}: {said} = {json.dumps(value)}: transformers makes a {found} in a way of "
        f"its own, which is not supported. If {TOKENIZER} is to be read as it stands, let "
        f'tokenizer_class in {CONFIG} be "PreTrainedTokenizerFast".'
    )


def named_class(folder: Path, config: dict[str, Any]) -> str:
    """The class that a file names, without what older versions put behind it; empty: none does."""
    named = config.get("tokenizer_class") or optional_json(folder / _MODEL).get("tokenizer_class")
    return str(named or "").removesuffix("Fast")


def chosen_class(folder: Path, config: dict[str, Any]) -> str:
    """The class that reads a tokenizer, whatever tokenizer.json holds."""
    kind = optional_json(folder / _MODEL).get("model_type")
    registered = REGISTERED.get(kind) if isinstance(kind, str) else None
    found = named_class(folder, config)
    has_code = _has_code(config)
    if not found or (kind in OWN and not has_code):
        found = registered or AS_IT_STANDS
    elif registered == AS_IT_STANDS and not has_code:
        found = AS_IT_STANDS
    found = ALIASES.get(found, found)
    return found if found in MODELS or found in OTHERS else AS_IT_STANDS


def reading_class(folder: Path, config: dict[str, Any]) -> str:
    """As ``tokenizer_class``, also of classes that are not known here."""
    found = chosen_class(folder, config)
    # A Llama tokenizer is not one of bytes: such a file stands, where it is called one.
    if found == named_class(folder, config) == "LlamaTokenizer" and not _has_code(config):
        file = folder / TOKENIZER
        if file.is_file() and '"ByteLevel"' in file.read_text(encoding="utf-8", errors="replace"):
            return AS_IT_STANDS
    return found


def _has_code(config: dict[str, Any]) -> bool:
    """Whether a tokenizer has code of its own (which is not run, here as there)."""
    found = config.get("auto_map")
    return (found.get("AutoTokenizer") if isinstance(found, dict) else found) is not None
