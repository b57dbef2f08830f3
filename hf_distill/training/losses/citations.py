"""The papers behind the losses, in BibTeX, for the model card."""

HINTON_2015 = """@article{hinton2015distilling,
  title   = {Distilling the Knowledge in a Neural Network},
  author  = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal = {arXiv preprint arXiv:1503.02531},
  year    = {2015}
}"""

SANH_2019 = """@article{sanh2019distilbert,
  title   = {{DistilBERT}, a distilled version of {BERT}: smaller, faster, cheaper and lighter},
  author  = {Sanh, Victor and Debut, Lysandre and Chaumond, Julien and Wolf, Thomas},
  journal = {arXiv preprint arXiv:1910.01108},
  year    = {2019}
}"""

JIAO_2020 = """@inproceedings{jiao2020tinybert,
  title     = {{TinyBERT}: Distilling {BERT} for Natural Language Understanding},
  author    = {Jiao, Xiaoqi and Yin, Yichun and Shang, Lifeng and Jiang, Xin and Chen, Xiao and Li, Linlin and Wang,
               Fang and Liu, Qun},
  booktitle = {Findings of EMNLP},
  year      = {2020}
}"""

HOFSTAETTER_2020 = """@article{hofstaetter2020margin,
  title   = {Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation},
  author  = {Hofst{\\"a}tter, Sebastian and Althammer, Sophia and Schr{\\"o}der, Michael and Sertkan, Mete and Hanbury,
             Allan},
  journal = {arXiv preprint arXiv:2010.02666},
  year    = {2020}
}"""

CAO_2007 = """@inproceedings{cao2007listwise,
  title     = {Learning to Rank: From Pairwise Approach to Listwise Approach},
  author    = {Cao, Zhe and Qin, Tao and Liu, Tie-Yan and Tsai, Ming-Feng and Li, Hang},
  booktitle = {Proceedings of the 24th International Conference on Machine Learning},
  year      = {2007}
}"""

WANG_2021 = """@inproceedings{wang2021minilmv2,
  title     = {{MiniLMv2}: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers},
  author    = {Wang, Wenhui and Bao, Hangbo and Huang, Shaohan and Dong, Li and Wei, Furu},
  booktitle = {Findings of ACL},
  year      = {2021}
}"""

GU_2023 = """@article{gu2023minillm,
  title   = {{MiniLLM}: Knowledge Distillation of Large Language Models},
  author  = {Gu, Yuxian and Dong, Li and Wei, Furu and Huang, Minlie},
  journal = {arXiv preprint arXiv:2306.08543},
  year    = {2023}
}"""

AGARWAL_2023 = """@article{agarwal2023gkd,
  title   = {On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes},
  author  = {Agarwal, Rishabh and Vieillard, Nino and Zhou, Yongchao and Stanczyk, Piotr and Ramos, Sabela and
             Geist, Matthieu and Bachem, Olivier},
  journal = {arXiv preprint arXiv:2306.13649},
  year    = {2023}
}"""

KO_2024 = """@article{ko2024distillm,
  title   = {{DistiLLM}: Towards Streamlined Distillation for Large Language Models},
  author  = {Ko, Jongwoo and Kim, Sungnyun and Chen, Tianyi and Yun, Se-Young},
  journal = {arXiv preprint arXiv:2402.03898},
  year    = {2024}
}"""

WEN_2023 = """@article{wen2023fdistill,
  title   = {f-Divergence Minimization for Sequence-Level Knowledge Distillation},
  author  = {Wen, Yuqiao and Li, Zichao and Du, Wenyu and Mou, Lili},
  journal = {arXiv preprint arXiv:2307.15190},
  year    = {2023}
}"""

KIM_2021 = """@article{kim2021comparing,
  title   = {Comparing {Kullback-Leibler} Divergence and Mean Squared Error Loss in Knowledge Distillation},
  author  = {Kim, Taehyeon and Oh, Jaehoon and Kim, NakYil and Cho, Sangwook and Yun, Se-Young},
  journal = {arXiv preprint arXiv:2105.08919},
  year    = {2021}
}"""

ZHAO_2022 = """@article{zhao2022decoupled,
  title   = {Decoupled Knowledge Distillation},
  author  = {Zhao, Borui and Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun},
  journal = {arXiv preprint arXiv:2203.08679},
  year    = {2022}
}"""

HUANG_2022 = """@article{huang2022dist,
  title   = {Knowledge Distillation from A Stronger Teacher},
  author  = {Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  journal = {arXiv preprint arXiv:2205.10536},
  year    = {2022}
}"""

SUN_2024 = """@article{sun2024logit,
  title   = {Logit Standardization in Knowledge Distillation},
  author  = {Sun, Shangquan and Ren, Wenqi and Li, Jingzhi and Wang, Rui and Cao, Xiaochun},
  journal = {arXiv preprint arXiv:2403.01427},
  year    = {2024}
}"""

ANSHUMANN_2025 = """@article{anshumann2025sparse,
  title   = {Sparse Logit Sampling: Accelerating Knowledge Distillation in {LLMs}},
  author  = {Anshumann and Zaidi, Mohd Abbas and Kedia, Akhil and Ahn, Jinwoo and Kwon, Taehwak and Lee, Kangwook and
             Lee, Haejun and Lee, Joohyung},
  journal = {arXiv preprint arXiv:2503.16870},
  year    = {2025}
}"""

REIMERS_2020 = """@inproceedings{reimers2020multilingual,
  title     = {Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation},
  author    = {Reimers, Nils and Gurevych, Iryna},
  booktitle = {EMNLP},
  year      = {2020}
}"""

FANG_2021 = """@inproceedings{fang2021seed,
  title     = {{SEED}: Self-supervised Distillation For Visual Representation},
  author    = {Fang, Zhiyuan and Wang, Jianfeng and Wang, Lijuan and Zhang, Lei and Yang, Yezhou and Liu, Zicheng},
  booktitle = {ICLR},
  year      = {2021}
}"""

GAO_2021 = """@inproceedings{gao2021scaling,
  title     = {Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup},
  author    = {Gao, Luyu and Zhang, Yunyi and Han, Jiawei and Callan, Jamie},
  booktitle = {RepL4NLP},
  year      = {2021}
}"""

KUSUPATI_2022 = """@inproceedings{kusupati2022matryoshka,
  title     = {Matryoshka Representation Learning},
  author    = {Kusupati, Aditya and Bhatt, Gantavya and Rege, Aniket and Wallingford, Matthew and Sinha, Aditya and
               Ramanujan, Vivek and Howard-Snyder, William and Chen, Kaifeng and Kakade, Sham and Jain, Prateek and
               Farhadi, Ali},
  booktitle = {NeurIPS},
  year      = {2022}
}"""
