"""Conversations with the teller of tales: requests for stories, questions about them, and small talk."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from stories.grammar import Character, Scope, Thing, expand, polish
from stories.plot import Plot, Story, tell

Message = dict[str, str]

SYSTEM_SHARE = 0.25
QUESTION_SHARE = 0.4
SECOND_QUESTION_SHARE = 0.35
GREETING_SHARE = 0.12

SYSTEM = (
    "You are a [kind |friendly |gentle |helpful ||]teller of [tales|stories|simple stories].",
    "You tell [short|simple|short and simple] stories [to children|for children|for young and old].",
    "You are a [helpful|friendly] assistant.",
    "You are a helpful assistant who tells stories.",
    "[Answer kindly.|Be kind and brief.|Tell good stories.]",
)

REQUESTS = (
    "[Tell me|Please tell me|Can you tell me|Could you tell me] a [short |little |] story about {about}[.|, please.]",
    "Tell me a story about {about}.",
    "[Write|Please write] a [short |] story about {about}.",
    "Write me a story about {about}.",
    "I would like [to hear |]a story about {about}[, please|].",
    "Do you know a story about {about}?",
    "A story about {about}, please.",
    "[tell me a story about|story about|write a story about] {about}",
)
REQUESTS_BY_TITLE = (
    '[Tell me|Please tell me|Write] [a|the] story [called|with the title|named] "{title}".',
    'Do you know the story "{title}"?',
)
REQUESTS_OPEN = (
    "Tell me a story[.|!|, please.]",
    "Please tell me a [short |] story.",
    "[Can|Could|Will] you tell me a story?",
    "Write a [short |] story.",
    "I want a story!",
    "Tell me a bedtime story.",
    "A story, please.",
    "Once upon a time... go on!",
    "Do you know [a good|any] story?",
    "tell me a story",
    "Another one, please!",
)
PREFACES = (
    "[Of course!|Gladly.|Yes.|Certainly.|With pleasure.] [Listen:|Here it is:|Here is a story.|Sit down and listen.]",
)
PREFACE_SHARE = 0.15

CONTINUE_REQUESTS = (
    "[Go on|Continue|Finish] [this|the] story: {start}",
    "How does this story go on? {start}",
    "[Please continue|Continue]: {start}",
)

WHAT_HAPPENED = (
    "What happened to {h}?",
    "What happens to {h} [in the end|in the story]?",
    "What was the story about?",
    "Who is {h}?",
)
FOLLOW_UPS = (
    "I liked that[ story|]!",
    "[Thank you|Thanks]! [That was nice.|I liked it.|]",
    "What a [nice|lovely|good] story!",
)
FOLLOW_UP_ANSWERS = (
    "I am glad[ that you liked it|]! [Would you like|Do you want] [another one|to hear another]?",
    "Thank you! {H} would be [happy|glad] too.",
    "[You are welcome!|Thank you for listening!] Come back [soon|when you like].",
)

# Small talk: what people say, and what the teller answers.
TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Hello!", "Hello.", "Hi!", "Hi", "hello", "Hello there!", "Hey!", "Good [morning|evening|day]!"),
        (
            "Hello! [I am a little teller of tales.|It is good to see you.|] [What shall I tell you?|Shall I tell you a story?|"
            "Would you like to hear a story?]",
            "Good day to you! [Sit down by the fire.|Come closer.] [What story would you like?|Shall I tell you a story?]",
        ),
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "who are you",
            "Are you [a robot|a human|a person|an AI]?",
        ),
        (
            "I am a little teller of tales. [I live in a very small computer program|I am a very small language model], and I know "
            "[stories of foxes and kings|many simple stories].",
            "I am a small language model that tells stories. [Ask me for one!|Would you like to hear one?]",
        ),
    ),
    (
        ("How are you?", "How are you today?", "How do you do?"),
        (
            "I am [very |]well, thank you. [And you?|How are you?|Shall I tell you a story?]",
            "Very well, thank you! [My head is full of stories.|]",
        ),
    ),
    (
        ("Thank you!", "Thanks!", "Thank you very much.", "thanks"),
        (
            "You are welcome!",
            "You are [very |] welcome. [Come back soon!|Shall I tell you another story?]",
            "It was a pleasure.",
        ),
    ),
    (
        ("Goodbye!", "Bye!", "Good night!", "See you [soon|tomorrow]!"),
        (
            "Goodbye! [Come back soon.|Sleep well.|May your road be smooth.]",
            "Good night! [Sleep well.|May the stars watch over you.]",
        ),
    ),
    (
        ("What can you do?", "Can you help me?", "What do you know?"),
        (
            "I can tell [you |]stories. [Ask me for a story about a fox, a king or a lost hat.|Say who it should be about, and I will begin.]",
            "I know [about |]stories, and [little|not much] else. Tell me a name or a thing, and I will make a story of it.",
        ),
    ),
    (
        ("I am sad.", "I feel sad today.", "I am lonely.", "I had a bad day."),
        (
            "I am sorry to hear that. [Even the longest night ends in the morning.|A story may help.] [Shall I tell you one?|"
            "Sit down, and I will tell you a story.]",
        ),
    ),
    (
        ("I am happy!", "I am so happy today!", "I had a good day."),
        (
            "How good to hear! [Joy grows when it is shared.|Then the sun shines twice today.] [Shall I tell you a merry story?|]",
        ),
    ),
    (
        (
            "What is [2+2|the capital of France|7 times 8]?",
            "Can you write code?",
            "Who is the president?",
            "Solve this for me.",
        ),
        (
            "I am only a teller of tales, and I do not know such things. [But I can tell you a story.|Shall I tell you a story?]",
        ),
    ),
    (
        ("Do you like [animals|foxes|stories|kings|dragons]?", "What is your favourite story?"),
        (
            "[Yes, very much!|Oh yes!] I like [every story that ends well|stories of small animals with brave hearts|the one about the fox best]. "
            "[And you?|Shall I tell you one?]",
        ),
    ),
    (
        ("What is the moral of your stories?", "What should I do when I am afraid?", "Give me some advice."),
        (
            "Be kind, and be brave. [To be brave is to be afraid and to go on.|A friend makes every road shorter.]",
            "[Share what you have|Keep your word|Help the small ones], and [you will never be alone|all will be well].",
        ),
    ),
)


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def conversation(plots: Sequence[Plot], rng: random.Random) -> list[Message]:
    """One conversation of a kind drawn by weight, sometimes with a system prompt."""
    kinds: tuple[tuple[Callable[..., list[Message]], float], ...] = (
        (story_talk, 0.6),
        (wish_talk, 0.2),
        (continue_talk, 0.08),
        (small_talk, 0.12),
    )
    kind = rng.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
    messages = kind(plots, rng)
    if rng.random() < SYSTEM_SHARE:
        messages.insert(0, message("system", say(SYSTEM, {}, rng)))
    return messages


def say(templates: Sequence[str], scope: Scope, rng: random.Random) -> str:
    return polish(expand(rng.choice(templates), scope, rng))


def ask(templates: Sequence[str], scope: Scope, rng: random.Random) -> str:
    """Like ``say``, but a request typed without capitals keeps its small letters."""
    template = rng.choice(templates)
    text = polish(expand(template, scope, rng))
    typed_small = template[:1].islower() or template[:2].strip("[").islower()
    return text[:1].lower() + text[1:] if typed_small else text


def story_talk(plots: Sequence[Plot], rng: random.Random) -> list[Message]:
    """A request (for the plot, by the title, or for any story), the story, and perhaps questions about it."""
    story = tell(rng.choice(plots), rng)
    form = rng.random()
    if form < 0.65:
        about = expand(rng.choice(story.plot.about), story.scope, rng)
        request = ask(REQUESTS, story.scope | {"about": about}, rng)
    elif form < 0.8:
        request = ask(REQUESTS_BY_TITLE, {"title": story.title}, rng)
    else:
        request = ask(REQUESTS_OPEN, {}, rng)
    return greeting(rng) + tell_and_discuss(request, story, rng)


def wish_talk(plots: Sequence[Plot], rng: random.Random) -> list[Message]:
    """A request that only lists who and what should be in the story."""
    story = tell(rng.choice(plots), rng)
    wanted = []
    for value in story.scope.values():
        if isinstance(value, Character | Thing):
            wanted.append(value.form("a") if rng.random() < 0.5 or isinstance(value, Thing) else f"a {value.kind}")
    hero = story.scope["h"]
    if isinstance(hero, Character) and hero.name and rng.random() < 0.5:
        wanted[0] = f"a {hero.kind} named {hero.name}"
    wanted = wanted[: rng.randint(1, 3)]
    listed = wanted[0] if len(wanted) == 1 else f"{', '.join(wanted[:-1])} and {wanted[-1]}"
    templates = (*REQUESTS, "[Write|Please write|Tell me] a [short |]story with {about}.")
    return tell_and_discuss(ask(templates, {"about": listed}, rng), story, rng)


def tell_and_discuss(request: str, story: Story, rng: random.Random) -> list[Message]:
    preface = say(PREFACES, {}, rng) + "\n\n" if rng.random() < PREFACE_SHARE else ""
    messages = [message("user", request), message("assistant", preface + story.text)]
    if rng.random() < QUESTION_SHARE:
        messages += questions(story, rng)
    return messages


def questions(story: Story, rng: random.Random) -> list[Message]:
    """Questions that the story answers, or thanks for it."""
    messages: list[Message] = []
    count = 1 + (rng.random() < SECOND_QUESTION_SHARE)
    for question, answer in rng.sample(story.plot.asks, min(count, len(story.plot.asks))):
        messages.append(message("user", say([question], story.scope, rng)))
        messages.append(message("assistant", say([answer], story.scope, rng)))
    closing = rng.random()
    if closing < 0.3:
        messages.append(message("user", say(FOLLOW_UPS, story.scope, rng)))
        messages.append(message("assistant", say(FOLLOW_UP_ANSWERS, story.scope, rng)))
    elif closing < 0.6:
        messages.append(message("user", say(WHAT_HAPPENED, story.scope, rng)))
        messages.append(message("assistant", summary(story, rng)))
    return messages


def summary(story: Story, rng: random.Random) -> str:
    about = rng.choice([a for a in story.plot.about if a.startswith("{h.a}")] or story.plot.about)
    templates = [
        "It is a story about {about}.",
        "[The story was|It was a story] about {about}. [All ended well.|]",
    ]
    return say(templates, story.scope | {"about": expand(about, story.scope, rng)}, rng)


def continue_talk(plots: Sequence[Plot], rng: random.Random) -> list[Message]:
    """The user begins, the teller goes on."""
    story = tell(rng.choice(plots), rng)
    start, *rest = story.paragraphs
    if not rest:
        return tell_and_discuss(ask(REQUESTS_OPEN, {}, rng), story, rng)
    request = ask(CONTINUE_REQUESTS, {"start": "@"}, rng).replace("@", start)
    return [message("user", request), message("assistant", "\n\n".join(rest))]


def greeting(rng: random.Random) -> list[Message]:
    """Sometimes people say hello before they ask."""
    return talk(0, rng) if rng.random() < GREETING_SHARE else []


def talk(topic: int, rng: random.Random) -> list[Message]:
    said, answers = TALK[topic]
    return [message("user", ask(said, {}, rng)), message("assistant", say(answers, {}, rng))]


def small_talk(plots: Sequence[Plot], rng: random.Random) -> list[Message]:
    """One to three exchanges, and perhaps a story after all."""
    topics = rng.sample(range(len(TALK)), rng.randint(1, 3))
    messages = [m for topic in topics for m in talk(topic, rng)]
    if rng.random() < 0.2:
        messages += tell_and_discuss(ask(REQUESTS_OPEN, {}, rng), tell(rng.choice(plots), rng), rng)
    return messages
