"""The vocabulary of the stories, as data: who may take part, what they may hold, where they may live."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of character: its noun, the groups a plot may ask for, where it lives and what describes it."""

    noun: str
    groups: tuple[str, ...]
    homes: tuple[str, ...]
    traits: tuple[str, ...]
    gender: str = "either"


HOUSES = (
    "a small house at the edge of the village", "a cottage by the river", "a little red house on a hill",
    "a stone house near the market", "a log house beside the woods", "a white cottage by the sea",
    "a tall narrow house in the town", "a wooden house under the mountain",
)
CASTLES = ("a great stone castle", "a palace with seven towers", "a castle on a high hill", "a golden palace")
CHILD = ("little", "kind", "curious", "clever", "brave", "cheerful", "quiet", "shy", "merry", "young", "gentle")
BEAST = ("little", "young", "kind", "curious", "clever", "shy", "merry", "brave", "gentle", "lively", "small")
LARGE = ("big", "strong", "gentle", "old", "huge", "kind", "quiet", "grumpy", "lonely")
AGED = ("old", "wise", "kind old", "wise old", "very old", "gentle old")
ROYAL = ("proud", "rich", "young", "good", "great", "lonely")
WORK = ("poor", "honest", "hard-working", "kind", "cheerful", "busy", "clever")

BURROWS = ("a snug burrow under an oak", "a warm hole beneath the hedge", "a cosy den in the forest")
HOLLOWS = ("a hollow tree in the forest", "an old oak at the edge of the meadow", "a tall beech tree")
NESTS = ("a nest in an apple tree", "a nest high in a pine tree", "a small nest under the roof of a barn")
POOLS = ("a green pond", "the reeds beside the lake", "a hole in the bank of a slow river")
CAVES = ("a dry cave in the hills", "a cave at the foot of the mountain", "a deep den among the rocks")
YARDS = ("a farmyard", "a barn full of sweet hay", "a stable near the river")

KINDS = (
    Kind("girl", ("child", "young"), HOUSES, CHILD, "she"),
    Kind("boy", ("child", "young"), HOUSES, CHILD, "he"),
    Kind("girl", ("child", "young"), HOUSES, CHILD, "she"),
    Kind("boy", ("child", "young"), HOUSES, CHILD, "he"),
    Kind("girl", ("child", "young"), HOUSES, CHILD, "she"),
    Kind("boy", ("child", "young"), HOUSES, CHILD, "he"),
    Kind("fox", ("animal", "young", "hunter"), BURROWS, BEAST),
    Kind("rabbit", ("animal", "young", "small"), BURROWS, BEAST),
    Kind("mouse", ("animal", "young", "small"), (*BURROWS, "a hole in the kitchen wall"), BEAST),
    Kind("squirrel", ("animal", "young", "small", "climber"), HOLLOWS, BEAST),
    Kind("hedgehog", ("animal", "young", "small", "slow"), BURROWS, BEAST),
    Kind("badger", ("animal", "young"), BURROWS, BEAST),
    Kind("mole", ("animal", "young", "small"), BURROWS, BEAST),
    Kind("hare", ("animal", "fast"), ("a hollow in the long grass", "the wide meadow"), BEAST),
    Kind("otter", ("animal", "young"), POOLS, BEAST),
    Kind("frog", ("animal", "young", "small"), POOLS, BEAST),
    Kind("turtle", ("animal", "slow", "young"), POOLS, BEAST),
    Kind("snail", ("animal", "slow", "small"), ("a crack in the garden wall", "the cabbage patch"), BEAST),
    Kind("duckling", ("animal", "young", "small"), POOLS, BEAST),
    Kind("kitten", ("animal", "young", "small", "climber"), (*YARDS, *HOUSES[:3]), BEAST),
    Kind("puppy", ("animal", "young"), (*YARDS, *HOUSES[:3]), BEAST),
    Kind("lamb", ("animal", "young"), ("a green valley", *YARDS), BEAST),
    Kind("goat", ("animal",), ("a shed on a green hill", *YARDS), BEAST),
    Kind("pig", ("animal", "young"), YARDS, BEAST),
    Kind("donkey", ("animal", "big"), YARDS, LARGE),
    Kind("horse", ("animal", "big", "fast"), YARDS, LARGE),
    Kind("deer", ("animal", "fast"), ("the deep forest", "a quiet glade"), BEAST),
    Kind("bear", ("animal", "big", "fearsome"), CAVES, LARGE),
    Kind("wolf", ("animal", "hunter", "fearsome"), CAVES, LARGE),
    Kind("lion", ("animal", "big", "fearsome", "hunter"), ("a den on the golden plain", *CAVES), LARGE),
    Kind("elephant", ("animal", "big"), ("a green jungle", "a wide green valley"), LARGE),
    Kind("monkey", ("animal", "young", "climber"), ("a tall fig tree", "a green jungle"), BEAST),
    Kind("sparrow", ("animal", "bird", "small", "young"), NESTS, BEAST),
    Kind("robin", ("animal", "bird", "small", "young"), NESTS, BEAST),
    Kind("wren", ("animal", "bird", "small"), NESTS, BEAST),
    Kind("crow", ("animal", "bird"), NESTS, BEAST),
    Kind("dove", ("animal", "bird"), NESTS, BEAST),
    Kind("owl", ("elder", "wise"), HOLLOWS, AGED),
    Kind("tortoise", ("elder", "wise"), POOLS, AGED),
    Kind("woman", ("elder",), HOUSES, AGED, "she"),
    Kind("man", ("elder",), HOUSES, AGED, "he"),
    Kind("grandmother", ("elder", "wise"), HOUSES, AGED[1:2], "she"),
    Kind("shepherd", ("worker", "elder"), HOUSES, AGED, "he"),
    Kind("baker", ("worker",), HOUSES, WORK),
    Kind("farmer", ("worker",), HOUSES[4:5], WORK),
    Kind("fisherman", ("worker", "fisher"), HOUSES[5:6], WORK, "he"),
    Kind("shoemaker", ("worker",), HOUSES, WORK),
    Kind("woodcutter", ("worker",), HOUSES[4:5], WORK),
    Kind("miller", ("worker",), HOUSES[1:2], WORK),
    Kind("tailor", ("worker",), HOUSES, WORK),
    Kind("potter", ("worker",), HOUSES, WORK),
    Kind("king", ("ruler",), CASTLES, ROYAL, "he"),
    Kind("queen", ("ruler",), CASTLES, ROYAL, "she"),
    Kind("king", ("ruler",), CASTLES, ROYAL, "he"),
    Kind("prince", ("ruler", "royal_child"), CASTLES, ROYAL[2:], "he"),
    Kind("princess", ("ruler", "royal_child"), CASTLES, ROYAL[2:], "she"),
    Kind("fairy", ("magic",), ("a bluebell wood",), ("tiny", "shining", "kind"), "she"),
    Kind("dwarf", ("magic",), CAVES, ("little", "old", "bearded"), "he"),
    Kind("giant", ("magic", "fearsome"), CAVES, LARGE, "he"),
    Kind("dragon", ("dragon",), CAVES, ("great", "green", "old", "huge", "red"), "either"),
    Kind("troll", ("gatekeeper",), CAVES, ("old", "big", "green", "grumpy"), "he"),
)

UNNAMED_GROUPS = frozenset({"elder", "worker", "ruler", "magic", "gatekeeper"})

CHILD_NAMES = {
    "she": ("Mia", "Anna", "Lily", "Rosa", "Nina", "Ella", "Clara", "Lucy", "Emma", "Sara", "Ida", "Mary", "Kate",
            "Ruth", "Amina", "Zuri", "Leela", "Maya", "Asha", "Grace", "Molly", "Jane", "Alice", "Hana", "Tess"),
    "he": ("Tom", "Ben", "Sam", "Max", "Leo", "Jack", "Peter", "Hans", "Paul", "Finn", "Otto", "Jim", "Will",
           "Omar", "Ravi", "Kofi", "Tunde", "Arjun", "Noah", "Oliver", "Henry", "Hugo", "Ned", "Ali", "Dan"),
}
BEAST_NAMES = {
    "she": ("Hazel", "Tilly", "Poppy", "Daisy", "Willow", "Pearl", "Dot", "Ruby", "Nell", "Bella", "Lulu", "Ivy",
            "Flora", "Penny", "Olive", "Betty", "Minnie", "Fern", "Coco", "Tansy"),
    "he": ("Pip", "Bruno", "Rusty", "Toby", "Barnaby", "Milo", "Felix", "Basil", "Teddy", "Oscar", "Gus", "Monty",
           "Chip", "Rufus", "Bobo", "Harry", "Dusty", "Ollie", "Jasper", "Moss"),
}
GROWN_NAMES = {
    "she": ("Martha", "Greta", "Agnes", "Berta", "Elsa", "Helga", "Nora"),
    "he": ("Anton", "Jacob", "Martin", "Karl", "Josef", "Simon", "Walter"),
}

# Things, by what a plot needs of them: (adjectives, noun).
THINGS: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "treasure": (
        (("red", "blue", "woolly"), "hat"), (("silver", "little", "golden"), "bell"), (("blue", "red"), "scarf"),
        (("red", "yellow", "paper"), "kite"), (("wooden", "little"), "flute"), (("shiny", "golden"), "button"),
        (("blue", "round"), "marble"), (("striped", "red"), "ball"), (("small", "old"), "drum"),
        (("brass", "golden"), "key"), (("green", "silk"), "ribbon"), (("silver", "old"), "spoon"),
        (("little", "wooden"), "boat"), (("rag", "wooden"), "doll"), (("golden", "silver"), "ring"),
        (("small", "bright"), "lantern"), (("warm", "brown"), "mitten"), (("picture", "old"), "book"),
    ),
    "toy": (
        (("red", "striped"), "ball"), (("paper", "yellow"), "kite"), (("wooden", "little"), "boat"),
        (("old", "small"), "drum"), (("wooden", "new"), "sled"), (("blue", "wooden"), "cart"),
        (("long", "strong"), "swing"), (("tin", "shiny"), "whistle"), (("spinning", "red"), "top"),
    ),
    "treat": (
        (("sweet", "ripe"), "apple"), (("warm", "honey"), "cake"), (("big", "round"), "loaf"),
        (("berry", "warm"), "pie"), (("yellow", "ripe"), "pear"), (("ginger", "nut"), "biscuit"),
        (("plum", "cherry"), "tart"), (("soft", "sweet"), "bun"),
    ),
    "plant": (
        (("tiny", "small"), "apple tree"), (("white", "red"), "rose"), (("tall", "yellow"), "sunflower"),
        (("little", "green"), "pumpkin plant"), (("young", "small"), "cherry tree"), (("purple",), "lily"),
    ),
    "building": (
        (("little", "wooden"), "house"), (("strong", "wooden"), "boat"), (("small", "stone"), "bridge"),
        (("tall", "wooden"), "tower"), (("snug", "little"), "hut"), (("long", "wooden"), "raft"),
    ),
    "vessel": (
        (("blue", "old"), "jug"), (("white", "china"), "bowl"), (("green", "glass"), "bottle"),
        (("best", "painted"), "cup"), (("tall", "blue"), "vase"), (("brown", "clay"), "pot"),
        (("round", "glass"), "lamp"), (("big", "white"), "plate"),
    ),
    "instrument": (
        (("wooden", "little"), "flute"), (("old", "brown"), "fiddle"), (("small", "silver"), "harp"),
        (("round", "little"), "drum"), (("brass", "bright"), "horn"), (("tin", "small"), "whistle"),
    ),
    "gift": (
        (("magic", "small"), "purse"), (("silver", "little"), "bell"), (("white", "smooth"), "stone"),
        (("golden", "strange"), "feather"), (("copper", "old"), "pot"), (("green", "warm"), "cloak"),
        (("little", "bright"), "lamp"), (("long", "oak"), "stick"),
    ),
}

RIDDLES = (
    ("What has a bed but never sleeps, and a mouth but never eats?", "a river"),
    ("What has teeth but cannot bite?", "a comb"),
    ("What grows bigger the more you take away from it?", "a hole"),
    ("What has hands but cannot clap?", "a clock"),
    ("What has a neck but no head?", "a bottle"),
    ("What flies without wings and cries without eyes?", "a cloud"),
    ("What goes up when the rain comes down?", "an umbrella"),
    ("What has one eye but cannot see?", "a needle"),
    ("What follows you all day and leaves you at night?", "my shadow"),
    ("What gets wetter the more it dries?", "a towel"),
    ("What is full of holes and yet holds water?", "a sponge"),
    ("What has leaves but is not a tree?", "a book"),
    ("What can you hear but never see, and it answers in your own words?", "an echo"),
    ("What is light as a feather, yet no one can hold it for long?", "my breath"),
    ("What house has no door and no window, and yet there is gold inside?", "an egg"),
    ("What runs all day and has no feet?", "the wind"),
)
