"""Which paper stands behind each method, by the `model_type` of its configuration."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A method as a card names it.

    Attributes:
        name: Name for people.
        summary: What it does, one sentence without a full stop.
        paper: Address of the paper, None where there is none to cite.
        citation: BibTeX entry, empty where there is none.
    """

    name: str
    summary: str
    paper: str | None = None
    citation: str = ""


METHODS: dict[str, Method] = {
    "hf_seqrec_sasrec": Method(
        "SASRec",
        "self-attention over the history",
        "https://arxiv.org/abs/1808.09781",
        """@inproceedings{kang2018sasrec,
  title = {Self-Attentive Sequential Recommendation},
  author = {Kang, Wang-Cheng and McAuley, Julian},
  booktitle = {IEEE International Conference on Data Mining (ICDM)},
  year = {2018}
}""",
    ),
    "hf_seqrec_gru4rec": Method(
        "GRU4Rec",
        "a recurrent network reads the history",
        "https://arxiv.org/abs/1511.06939",
        """@inproceedings{hidasi2016gru4rec,
  title = {Session-based Recommendations with Recurrent Neural Networks},
  author = {Hidasi, Bal{\\'a}zs and Karatzoglou, Alexandros and Baltrunas, Linas and Tikk, Domonkos},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2016}
}""",
    ),
    "hf_seqrec_bert4rec": Method(
        "BERT4Rec",
        "a bidirectional transformer fills in the masked next item",
        "https://arxiv.org/abs/1904.06690",
        """@inproceedings{sun2019bert4rec,
  title = {{BERT4Rec}: Sequential Recommendation with Bidirectional Encoder Representations from Transformer},
  author = {Sun, Fei and Liu, Jun and Wu, Jian and Pei, Changhua and Lin, Xiao and Ou, Wenwu and Jiang, Peng},
  booktitle = {ACM International Conference on Information and Knowledge Management (CIKM)},
  year = {2019}
}""",
    ),
    "hf_seqrec_caser": Method(
        "Caser",
        "convolutions over the last few items, along time and along features",
        "https://arxiv.org/abs/1809.07426",
        """@inproceedings{tang2018caser,
  title = {Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding},
  author = {Tang, Jiaxi and Wang, Ke},
  booktitle = {ACM International Conference on Web Search and Data Mining (WSDM)},
  year = {2018}
}""",
    ),
    "hf_seqrec_nextitnet": Method(
        "NextItNet",
        "stacked dilated causal convolutions over the history",
        "https://arxiv.org/abs/1808.05163",
        """@inproceedings{yuan2019nextitnet,
  title = {A Simple Convolutional Generative Network for Next Item Recommendation},
  author = {Yuan, Fajie and Karatzoglou, Alexandros and Arapakis, Ioannis and Jose, Joemon M. and He, Xiangnan},
  booktitle = {ACM International Conference on Web Search and Data Mining (WSDM)},
  year = {2019}
}""",
    ),
    "hf_seqrec_fmlprec": Method(
        "FMLP-Rec",
        "learned filters in the frequency domain take the place of attention",
        "https://arxiv.org/abs/2202.13556",
        """@inproceedings{zhou2022fmlprec,
  title = {Filter-enhanced {MLP} is All You Need for Sequential Recommendation},
  author = {Zhou, Kun and Yu, Hui and Zhao, Wayne Xin and Wen, Ji-Rong},
  booktitle = {The Web Conference (WWW)},
  year = {2022}
}""",
    ),
    "hf_seqrec_lightsans": Method(
        "LightSANs",
        "each item attends to a few latent interests of the history",
        "https://doi.org/10.1145/3404835.3462978",
        """@inproceedings{fan2021lightsans,
  title = {Lighter and Better: Low-Rank Decomposed Self-Attention Networks for Next-Item Recommendation},
  author = {Fan, Xinyan and Liu, Zheng and Lian, Jianxun and Zhao, Wayne Xin and Xie, Xing and Wen, Ji-Rong},
  booktitle = {ACM SIGIR Conference on Research and Development in Information Retrieval},
  year = {2021}
}""",
    ),
    "hf_seqrec_itemitem": Method(
        "Item-item",
        "items that people chose together with those of the history",
        "https://doi.org/10.1145/371920.372071",
        """@inproceedings{sarwar2001itembased,
  title = {Item-based Collaborative Filtering Recommendation Algorithms},
  author = {Sarwar, Badrul and Karypis, George and Konstan, Joseph and Riedl, John},
  booktitle = {International Conference on World Wide Web (WWW)},
  year = {2001}
}""",
    ),
    "hf_seqrec_delrec": Method(
        "DELRec",
        "a language model ranks candidates in the light of soft prompts distilled from a recommender",
        "https://arxiv.org/abs/2406.11156",
        """@article{zhang2024delrec,
  title = {DELRec: Distilling Sequential Pattern to Enhance LLMs-based Sequential Recommendation},
  author = {Zhang, Haoyi and Sun, Guohao and Lu, Jinhu and Liu, Guanfeng and Fang, Xiu Susie},
  journal = {arXiv preprint arXiv:2406.11156},
  year = {2024}
}""",
    ),
    "hf_seqrec_llm_ranker": Method(
        "LLMRanker",
        "a language model ranks by its own head what a recommender retrieved, as LlamaRec does",
        "https://arxiv.org/abs/2311.02089",
        """@article{yue2023llamarec,
  title = {LlamaRec: Two-Stage Recommendation using Large Language Models for Ranking},
  author = {Yue, Zhenrui and Rabhi, Sara and Moreira, Gabriel de Souza Pereira and Wang, Dong and Oldridge, Even},
  journal = {arXiv preprint arXiv:2311.02089},
  year = {2023}
}""",
    ),
    "hf_seqrec_llm_srec": Method(
        "LLM-SRec",
        "a frozen language model that learned a sequential recommender's knowledge of order",
        "https://arxiv.org/abs/2502.13909",
        """@inproceedings{kim2025lost,
  title = {Lost in Sequence: Do Large Language Models Understand Sequential Recommendation?},
  author = {Kim, Sein and Kang, Hongseok and Kim, Kibum and Kim, Jiwan and Kim, Donghyun and Yang, Minchul and Oh, Kwangjin and McAuley,
    Julian and Park, Chanyoung},
  booktitle = {ACM SIGKDD Conference on Knowledge Discovery and Data Mining (KDD)},
  year = {2025}
}""",
    ),
    "hf_seqrec_p2rec": Method(
        "P2Rec",
        "a language model that tells how a user's interest is spread over groups of items, and gives every item an enhanced vector",
        None,
        """@inproceedings{liu2024practice,
  title = {A Practice-Friendly {LLM}-Enhanced Paradigm with Preference Parsing for Sequential Recommendation},
  author = {Liu, Dugang and others},
  booktitle = {ACM Conference on Recommender Systems (RecSys)},
  year = {2024}
}""",
    ),
    "hf_seqrec_seralm": Method(
        "SeRALM",
        "a backbone that also reads, as one stored vector per item, what a language model wrote about the items",
        "https://doi.org/10.1145/3626772.3657782",
        """@inproceedings{ren2024enhancing,
  title = {Enhancing Sequential Recommenders with Augmented Knowledge from Aligned Large Language Models},
  author = {Ren, Yankun and Chen, Zhongde and Yang, Xinxing and Li, Longfei and Jiang, Cong and Cheng, Lei and Zhang, Bo and Mo, Linjian and Zhou, Jun},
  booktitle = {International ACM SIGIR Conference on Research and Development in Information Retrieval (SIGIR)},
  year = {2024}
}""",
    ),
    "hf_seqrec_e4srec": Method(
        "E4SRec",
        "a language model that reads projected item vectors and scores the catalogue with one linear map",
        "https://arxiv.org/abs/2312.02443",
        """@article{li2023e4srec,
  title = {{E4SRec}: An Elegant Effective Efficient Extensible Solution of Large Language Models for Sequential Recommendation},
  author = {Li, Xinhang and others},
  journal = {arXiv preprint arXiv:2312.02443},
  year = {2023}
}""",
    ),
    "hf_seqrec_llmseqsim": Method(
        "LLMSeqSim",
        "items whose texts are most like those of the history, by vectors of a language model, without any training",
        "https://arxiv.org/abs/2309.09261",
        """@inproceedings{harte2023leveraging,
  title = {Leveraging Large Language Models for Sequential Recommendation},
  author = {Harte, Jesse and others},
  booktitle = {ACM Conference on Recommender Systems (RecSys)},
  year = {2023}
}""",
    ),
    "hf_seqrec_score_sum": Method(
        "Sum of scores", "the standardised scores of two recommenders, added up with a weight chosen on validation"
    ),
    "hf_seqrec_popularity": Method("Popularity", "the same most chosen items for everybody, whatever the history"),
}
