"""Tasks that a context teaches by examples: what is asked, and the answer.

The four of ``experiments.real``, and three more; the word asked for says nothing of the task.
"""

from experiments.language.real.prompts import TASKS

_MORE: dict[str, tuple[tuple[str, str], ...]] = {
    "translation": (
        ("brother", "frère"), ("sister", "soeur"), ("father", "père"), ("mother", "mère"),
        ("city", "ville"), ("fire", "feu"), ("time", "temps"), ("year", "année"),
        ("week", "semaine"), ("door", "porte"), ("window", "fenêtre"), ("table", "table"),
        ("apple", "pomme"), ("cheese", "fromage"), ("wine", "vin"), ("fish", "poisson"),
        ("horse", "cheval"), ("bird", "oiseau"), ("flower", "fleur"), ("road", "route"),
    ),
    "antonyms": (
        ("strong", "weak"), ("push", "pull"), ("buy", "sell"), ("win", "lose"), ("love", "hate"),
        ("begin", "end"), ("north", "south"), ("east", "west"), ("man", "woman"), ("king", "queen"),
        ("summer", "winter"), ("heavy", "light"), ("cheap", "expensive"), ("loud", "quiet"),
        ("thick", "thin"), ("wide", "narrow"), ("alive", "dead"), ("above", "below"),
        ("before", "after"), ("inside", "outside"), ("friend", "enemy"), ("success", "failure"),
    ),
    "capitals": (
        ("Belgium", "Brussels"), ("Chile", "Santiago"), ("Iran", "Tehran"), ("Iraq", "Baghdad"),
        ("Israel", "Jerusalem"), ("Syria", "Damascus"), ("Thailand", "Bangkok"),
        ("Vietnam", "Hanoi"), ("Ukraine", "Kiev"), ("Romania", "Bucharest"),
        ("Bulgaria", "Sofia"), ("Serbia", "Belgrade"), ("Croatia", "Zagreb"),
        ("Lebanon", "Beirut"), ("Jordan", "Amman"), ("Algeria", "Algiers"), ("Tunisia", "Tunis"),
        ("Venezuela", "Caracas"), ("Indonesia", "Jakarta"), ("Afghanistan", "Kabul"),
    ),
    "labels": (
        ("I fell in love with it", "positive"), ("It smelled of mould", "negative"),
        ("An unforgettable evening", "positive"), ("We left before the end", "negative"),
        ("Fresh and full of flavour", "positive"), ("My soup was cold", "negative"),
        ("The guide was kind and funny", "positive"), ("Overpriced and tasteless", "negative"),
        ("A masterpiece", "positive"), ("Nobody answered my calls", "negative"),
        ("The children loved it", "positive"), ("It was broken when it arrived", "negative"),
        ("Simply perfect", "positive"), ("The worst of the series", "negative"),
        ("It made my day", "positive"), ("I fell asleep twice", "negative"),
        ("Great value for the money", "positive"), ("The bed was hard and dirty", "negative"),
        ("Everything went smoothly", "positive"), ("Never again", "negative"),
    ),
    "past tense": (
        ("go", "went"), ("see", "saw"), ("take", "took"), ("eat", "ate"), ("write", "wrote"),
        ("give", "gave"), ("come", "came"), ("know", "knew"), ("think", "thought"),
        ("bring", "brought"), ("buy", "bought"), ("run", "ran"), ("speak", "spoke"),
        ("break", "broke"), ("drive", "drove"), ("fall", "fell"), ("feel", "felt"),
        ("find", "found"), ("fly", "flew"), ("grow", "grew"), ("hear", "heard"), ("keep", "kept"),
        ("leave", "left"), ("lose", "lost"), ("make", "made"), ("meet", "met"), ("pay", "paid"),
        ("ride", "rode"), ("say", "said"), ("sell", "sold"), ("send", "sent"), ("sing", "sang"),
        ("sit", "sat"), ("sleep", "slept"), ("stand", "stood"), ("swim", "swam"),
        ("teach", "taught"), ("tell", "told"), ("win", "won"), ("wear", "wore"),
        ("begin", "began"), ("catch", "caught"), ("choose", "chose"), ("drink", "drank"),
    ),
    "languages": (
        ("France", "French"), ("Italy", "Italian"), ("Spain", "Spanish"), ("Germany", "German"),
        ("Japan", "Japanese"), ("China", "Chinese"), ("Russia", "Russian"), ("Greece", "Greek"),
        ("Poland", "Polish"), ("Norway", "Norwegian"), ("Sweden", "Swedish"),
        ("Portugal", "Portuguese"), ("Hungary", "Hungarian"), ("Finland", "Finnish"),
        ("Turkey", "Turkish"), ("Denmark", "Danish"), ("Ukraine", "Ukrainian"),
        ("Romania", "Romanian"), ("Bulgaria", "Bulgarian"), ("Serbia", "Serbian"),
        ("Croatia", "Croatian"), ("Iceland", "Icelandic"), ("Albania", "Albanian"),
        ("Vietnam", "Vietnamese"), ("Thailand", "Thai"), ("Korea", "Korean"),
        ("Indonesia", "Indonesian"), ("Armenia", "Armenian"), ("Georgia", "Georgian"),
        ("Lithuania", "Lithuanian"), ("Latvia", "Latvian"), ("Estonia", "Estonian"),
        ("Slovakia", "Slovak"), ("Slovenia", "Slovenian"), ("Mongolia", "Mongolian"),
        ("Malaysia", "Malay"), ("Brazil", "Portuguese"), ("Mexico", "Spanish"),
        ("Egypt", "Arabic"), ("Iran", "Persian"), ("Iraq", "Arabic"), ("Austria", "German"),
        ("Argentina", "Spanish"), ("Somalia", "Somali"),
    ),
    "currencies": (
        ("Japan", "yen"), ("India", "rupee"), ("Russia", "ruble"), ("Mexico", "peso"),
        ("Germany", "euro"), ("Britain", "pound"), ("China", "yuan"), ("Switzerland", "franc"),
        ("Sweden", "krona"), ("Canada", "dollar"), ("Turkey", "lira"), ("Poland", "zloty"),
        ("Brazil", "real"), ("Israel", "shekel"), ("Korea", "won"), ("Thailand", "baht"),
        ("Hungary", "forint"), ("Vietnam", "dong"), ("Ukraine", "hryvnia"), ("Norway", "krone"),
        ("Nigeria", "naira"), ("Egypt", "pound"), ("Romania", "leu"), ("Bulgaria", "lev"),
        ("Kuwait", "dinar"), ("Morocco", "dirham"), ("Iran", "rial"), ("Kenya", "shilling"),
        ("Malaysia", "ringgit"), ("Indonesia", "rupiah"), ("Peru", "sol"), ("France", "euro"),
        ("Argentina", "peso"), ("Australia", "dollar"), ("Pakistan", "rupee"),
        ("Denmark", "krone"), ("Iraq", "dinar"), ("Serbia", "dinar"), ("Chile", "peso"),
        ("Ghana", "cedi"), ("Ethiopia", "birr"), ("Zambia", "kwacha"), ("Iceland", "krona"),
        ("Mongolia", "tugrik"), ("Bangladesh", "taka"), ("Venezuela", "bolivar"),
    ),
}  # fmt: skip

#: Task -> pairs, none of them asked twice.
PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    name: tuple(dict([*TASKS.get(name, ()), *more]).items()) for name, more in _MORE.items()
}

#: The same line for every task: what to do with a word, the context alone says.
LINE = "Q: {}\nA:"
