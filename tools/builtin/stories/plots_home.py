"""Plots of home and friendship: lost things, quarrels, promises, gifts, lessons."""

from __future__ import annotations

from stories.plot import Plot

PLOTS = (
    Plot(
        about=("{h.a} who lost {h.his} {o}", "{h.a} and a lost {o}", "{h.a} and {h.his} {o.full}"),
        titles=("The Lost {O}", "{H} and the {O}", "Where Is the {O}?"),
        cast={"h": "young", "f": "animal wise"},
        things={"o": "treasure"},
        pick={
            "spot": (
                "under a bush",
                "in the long grass",
                "beside the well",
                "on a branch of the old oak",
                "at the bottom of the garden",
                "between two stones",
                "behind the barn",
                "in an empty nest",
                "under the bridge",
            )
        },
        text="""
        {h} had {o.a}[ , and {h.he} loved it more than anything| which {h.he} took everywhere| . It was a
        present from {h.his} grandmother]. <day> {h} [looked for {h.his} {o}|wanted to play with the {o}],
        but it was gone. [<sadly h>.|"Oh no!" cried {h}. "My {o} is lost!"|"Where can my {o} be?" {h.he}
        said.]

        {h} looked [everywhere|high and low|in every corner]. {h.He} looked [under the bed|in the
        kitchen|behind the door], and {h.he} looked [by the gate|in the yard|along the path]. [There was no
        {o}.|The {o} was not there.] [{H} asked the [neighbours|bees|birds], <nobody>.|]

        <then> {h} met {f.a}{f.called}. [{F} asked, "Why are you [crying|so sad], {h.call}?"|"What is the
        matter?" asked {f}.] "I have lost my {o.full}," said {h}. ["Do not cry," said {f}. "I will help you
        look."|"When did you see it last?" asked {f}. {h} thought and said, "I was playing outside [when the
        wind came|yesterday]."| "Two can look better than one," said {f}.]

        So {h} and {f} [looked together|went back along the path|searched together until the sun was low].
        [And there,|At last,] {spot}, [they saw something [bright|{o.adjective}]|{f} saw something].
        "[Look|Come here], {h.call}!" cried {f}. "Is this your {o}?" "[Yes, yes|Yes]! That is my {o}!" said
        {h}.

        <gladly h>. [<thanks f> said {h}.|{h.He} thanked {f} again and again.] [{H} took the {o} home and
        [hung it by the bed|kept it safe]|{h} held the {o} tight all the way home], and {h.he} never lost it
        again. [<friends h>.|]""",
        morals=(
            "A friend can find what we cannot.",
            "Trouble is smaller when it is shared.",
            "Take good care of what you love.",
        ),
        asks=(
            ("What did {h} lose?", "{H} lost {h.his} {o.full}."),
            ("Who helped {h}?", "{F} helped {h.him}[ to look for the {o}|]."),
            ("Where was the {o}?", "The {o} was {spot}."),
        ),
    ),
    Plot(
        about=("two friends who quarrelled over {o.a}", "{h.a} and {f.a} who had a quarrel"),
        titles=("The Quarrel", "Two Friends and One {O}", "{H} and {F}"),
        cast={"h": "young", "f": "young"},
        things={"o": "toy"},
        text="""
        {h.His} best friend was {f.a}{f.called}. They [played together every day|did everything together].

        <day> {h} and {f} found {o.a} [in the grass|by the road|near the stream]. "[I saw it first|It is
        mine]!" cried {h}. "No, [it is mine|I saw it first]!" cried {f}. {h} pulled, and {f} pulled, [and
        they shouted at each other|and neither would let go]. [Crack!|Snap!] The {o} [broke in two|broke].

        "Now look what you have done!" said {h}. "It was your fault!" said {f}. [{H} went home, and {f} went
        home too.|They turned their backs on each other and went home.] They did not [speak|say a word] to
        each other [all day|for three days].

        [But {h} was not happy.|{h} sat alone, and the day was very long.] [There was no one to play
        with.|{h.He} tried to play, but it was no fun alone.] "[A {o} is only a {o}|The {o} does not
        matter]," {h.he} thought, "but {f} is my friend." [{F} was sad too.|And {f} sat at home and thought
        the same.]

        <next> {h} <went> to see {f}, and half way {h.he} met {f} coming to see {h.him}! "I am sorry," said
        {h}. "I am sorry too," said {f}. [They both laughed.|Then they both began to laugh.] [Together they
        mended the {o}[ with string|with glue and a bit of string|], and it was [as good as new|almost as
        good as before].|They sat down and mended the {o} together.] [After that they took turns|After that,
        {h} played with it in the morning and {f} in the afternoon], and they did not quarrel over it again.""",
        morals=(
            "A friend is worth more than any toy.",
            "It is brave to say that you are sorry.",
            "One toy is enough for two who can share.",
        ),
        asks=(
            ("What did they quarrel about?", "They quarrelled about {o.a}."),
            (
                "How did {h} and {f} make up?",
                "They both said that they were sorry[, and they mended the {o}|].",
            ),
            ("Who was {h.his} friend?", "{h.His} friend was {f}."),
        ),
    ),
    Plot(
        about=("{h.a} who was afraid of {fear}", "{h.a} who learned to be brave"),
        titles=("{H} Is Brave", "Afraid of {Fear}", "How {H} Became Brave"),
        cast={"h": "young", "f": "elder wise"},
        pick={"fear": ("the dark", "the thunder", "the deep wood", "the wind")},
        text="""
        {h} was not afraid of [mice|rain|cold water], and {h.he} was not afraid of [spiders|big dogs|high
        walls]. But {h.he} was [very |]afraid of {fear}. [Every time, {h.he} hid under the blanket.|When it
        came, {h.he} covered {h.his} eyes.]

        <day> {h} told {f.a}{f.called} about it. "[Are you never afraid of {fear}|What can I do]?" asked
        {h}. {F} [smiled|nodded]. "[When I was young, I was afraid of {fear} too|Everyone is afraid of
        something]," {f.he} said. "Then [my mother|an old friend] told me a secret: [sing a song and walk
        on|count to ten and take one step|say your own name and take one step]. To be brave is to be afraid
        and to go on."

        <night> {h} heard a small voice outside. "Help! [Help me!|Please help me!]" it called. It was [a
        little bird that had fallen from its nest|a lost lamb|a tiny mouse that was caught under a branch].
        But outside there was {fear}. <afraid h>. Then {h.he} remembered the words of {f}. [{h.He} took a
        deep breath.|{h.He} shut {h.his} eyes for a moment.] {h.He} [sang a song|counted to ten], and {h.he}
        took one step, and then one more.

        {h} [came to|found] the little creature, took it up gently and carried it home. It was warm and
        safe. [Only then did {h} notice it:|Then {h} looked back at the door.] "I went out into it," {h.he}
        said, "and nothing bad happened!"

        <next> {h} told {f} everything. "[You see|There]," said {f}, "you were brave all the time." And
        after that {h} was [not so|hardly] afraid of {fear} any more.""",
        morals=(
            "To be brave is to be afraid and still to do what is right.",
            "A kind heart makes brave feet.",
        ),
        asks=(
            ("What was {h} afraid of?", "{H} was afraid of {fear}."),
            ("Who helped {h}?", "{F} helped {h.him} with good advice."),
            ("Why did {h} go outside?", "{H} heard a small voice that called for help."),
        ),
    ),
    Plot(
        about=("{h.a} who shared {h.his} last {o}", "{h.a} and a hungry {f.kind}", "sharing {o.a}"),
        titles=("The Last {O}", "{H} Shares", "Half a {O}"),
        cast={"h": "young worker", "f": "animal elder"},
        things={"o": "treat"},
        text="""
        It was [a cold winter|a hard year], and there was [little to eat|not much food in the house]. One
        day {h} had only one {o} left. "I will [eat it slowly|save it for my supper]," {h.he} said.

        Then there came a knock at the door. Outside stood {f.a}{f.called}, [thin and cold|wet and
        tired|shaking with cold]. "[Please|Oh please], have you something to eat?" asked {f}. "I have not
        eaten for [two|three] days."

        {h} looked at the {o}. {h.He} was [very |]hungry too. But {h.he} saw how thin {f} was. "Come in,"
        said {h}. ["Half a {o} is better than none."|"What is enough for one is enough for two."] {h.He} cut
        the {o} in two and gave the bigger half to {f}. They sat by the fire and ate, [and it tasted better
        than any feast|and they told each other stories].

        <next> {f} was gone. {h} [did not think about it any more|wondered where {f.he} went]. The winter
        grew colder, and [soon the cupboard was empty|now {h} had nothing left at all]. <sadly h>.

        Then there came a knock at the door once more. It was {f}, with a [big|full|heavy] basket! "[I have
        not forgotten you|You gave me half of all you had]," said {f}. "Now [half of all I have is yours|I
        will share with you]." In the basket there were [nuts and bread and honey|apples and cheese and
        bread|eggs and corn and cakes]. [And they were never hungry again that winter.|They ate together,
        and the winter was not so long any more.]""",
        morals=(
            "What we give comes back to us.",
            "Half a loaf shared is sweeter than a whole one eaten alone.",
            "Kindness is never lost.",
        ),
        asks=(
            ("What did {h} share?", "{H} shared {h.his} last {o} with {f}."),
            ("Who knocked at the door?", "It was {f.a}{f.called}."),
            ("What was in the basket?", "There was good food in the basket."),
        ),
    ),
    Plot(
        about=("{h.a} who kept a promise", "{h.a} who promised to take care of {o.a}"),
        titles=("The Promise", "{H} Keeps a Promise", "A Promise to {F}"),
        cast={"h": "young", "f": "elder worker", "t": "young"},
        things={"o": "plant"},
        text="""
        {h.His} neighbour was {f.a}{f.called}. <day> {f} had to go on a journey. "[Will you|Please will you]
        water my {o} while I am away?" asked {f}. "It must have water every evening, or it will die." "I
        promise," said {h}.

        [On the first evening|The first day] {h} watered the {o}. [On the second evening|The second day]
        {h.he} watered it too. On the third day {t.a}{t.called} came by. "[There is a fair in the village|We
        are all going to swim in the lake]!" said {t}. "Come with us, {h.call}!" {h} [wanted very much to
        go|loved such things]. But the sun was going down, and the {o} had no water yet.

        "[I cannot come now|You go on]," said {h}. "I made a promise." "[Who will know?|It is only a {o}!]"
        said {t}. "I will know," said {h}. {T} [laughed|shrugged] and ran away. {h} carried the water from
        the well and gave it to the {o}. [It was a long evening, and {h.he} felt lonely.|{h.He} could hear
        the music far away.]

        At last {f} came back. [{f.He} looked at the {o}, and {f.his} eyes shone.|The {o} was green and
        strong.] "You kept your promise," said {f}. ["And now I will keep mine.|"I know what it cost you.]
        [This is for you.|Here.]" And {f.he} gave {h} a [little {o} of {h.his} own|seed of the same kind,
        wrapped in paper]. {h} planted it by the door, and every [summer|spring] it reminded {h.him} of that
        day. [Even {t} came to look at it.|]""",
        morals=(
            "A promise is a promise, even when nobody is looking.",
            "Those who keep their word are trusted.",
        ),
        asks=(
            ("What did {h} promise?", "{H} promised to water the {o}."),
            ("Who wanted {h} to come along?", "It was {t}."),
            ("What did {f} give to {h}?", "{F} gave {h.him} something to plant."),
        ),
    ),
    Plot(
        about=("{h.a} who broke {o.a}", "{h.a} who told the truth"),
        titles=("The Broken {O}", "{H} Tells the Truth"),
        cast={"h": "child", "f": "animal", "g": "elder"},
        things={"o": "vessel"},
        pick={"kin": ("mother", "grandmother", "father", "aunt")},
        text="""
        {h.His} {kin} had {o.a}, and it stood on [a high shelf|the table by the window]. "Be careful with
        the {o}," {h.his} {kin} [always said|used to say].

        <day> {h} was playing [with a ball|with the cat|at being a king] in the house. [Bump!|Crash!] The
        {o} fell down and broke into [many|a hundred|three] pieces. <afraid h>. "[What shall I do|What will
        {kin} say]?" {h.he} thought. [Quickly {h.he} hid the pieces under the bed.|{h.He} put the pieces in
        a bag and hid the bag behind the wood.]

        In the evening {h.his} {kin} came home. "Where is the {o}?" [she|{kin}] asked. "[Perhaps the cat
        broke it|I do not know]," said {h}. [But {h.he} could not eat {h.his} supper.|The words felt like a
        stone in {h.his} heart.] {h} lay in bed and could not sleep.

        [At last|In the middle of the night] {h} got up and went to {h.his} {kin}. "I broke the {o}," {h.he}
        said, [and {h.he} began to cry|very softly]. "And I told a lie. I am sorry." For a moment it was
        quiet. Then {h.his} {kin} took {h.him} in both arms. "[A {o} is only a thing|I am sad about the
        {o}]," said {h.his} {kin}, "but I am [proud|glad] that you told me the truth."

        <next> they [glued the pieces together|made a new place for the pieces in the garden, where flowers
        could grow in them]. [It was not as fine as before, but they loved it even more.|And {h} slept well
        again.]""",
        morals=(
            "The truth may be hard to tell, but a lie is harder to carry.",
            "A truth told late is better than a lie.",
        ),
        asks=(
            ("What did {h} break?", "{H} broke the {o.full}."),
            ("Why could {h} not sleep?", "{H} had told a lie about the {o}."),
            ("Was {h.his} {kin} angry?", "No. {h.His} {kin} was glad that {h} told the truth."),
        ),
    ),
    Plot(
        about=("{h.a} who had no money for a gift", "a birthday gift for {f.a}"),
        titles=("The Best Gift", "A Gift for {F}", "A Birthday"),
        cast={"h": "young", "f": "young elder"},
        pick={
            "made": (
                "a crown of flowers",
                "a little basket of grass",
                "a picture of the two of them",
                "a song",
                "a warm blanket of leaves and wool",
                "a necklace of red berries",
            )
        },
        text="""
        [Tomorrow was the birthday of {f.a}{f.called}|{h.His} friend {f} had a birthday soon|{h.His} friend
        was {f.a}{f.called}, and the next day was {f.his} birthday]. Everyone had a fine gift for {f}. [One
        had a golden ring, and one had a silk coat.|There were sweets and toys and books.] But {h} had no
        money at all.

        "What can I give?" thought {h}. {h.He} [looked in every pocket|turned out {h.his} bag] and found
        only [a bit of string|a button|a crumb of bread]. <sadly h>. Then {h.he} had an idea. "[I have two
        hands|I cannot buy a gift, but I can make one]!" All that day {h} worked, [and far into the
        night|and {h.he} did not even stop to eat], and in the end {h.he} had made {made}.

        At the party {f} opened the gifts one by one. {h} stood behind the others. [{h.He} felt ashamed.|"My
        gift is so small," {h.he} thought.] "And what have you brought, {h.call}?" asked {f}. "It is only
        {made}," said {h}. "I made it for you."

        {f} was silent for a moment. Then {f.he} [smiled|began to smile]. "All the others bought their
        gifts," {f.he} said, "but you gave me [a whole day of your life|your time and your love]. [This is
        the best gift of all.|I will keep {made} for ever.]" <gladly h>, and {h.he} danced with {f} until
        the moon came up.""",
        morals=("The best gifts are made with love.", "It is not the price that makes a gift dear."),
        asks=(
            ("What did {h} make?", "{H} made {made}."),
            ("Who had a birthday?", "It was the birthday of {f}."),
            ("Why did {h} make {h.his} gift?", "{H} had no money to buy one."),
        ),
    ),
    Plot(
        about=("{h.a} who wanted to learn to {skill}", "{h.a} who never gave up"),
        titles=("{H} Learns to {Skill}", "Once More, {H}!", "{H} Never Gives Up"),
        cast={"h": "young", "f": "young elder", "t": "animal"},
        pick={"skill": ("swim", "whistle", "dance", "read", "skate", "sing", "climb", "swing on a rope")},
        text="""
        More than anything {h} wanted to learn to {skill}. [Everyone else could {skill}, it seemed.|All
        {h.his} friends could {skill} very well.]

        <day> {h} tried it for the first time. It went very badly. {T.A}{t.called} saw it and laughed. "You
        will never learn to {skill}!" said {t}. <sadly h>. "[Perhaps {t} is right|I will never try again],"
        {h.he} said.

        But {f.a}{f.called} had seen it too. "[Do not listen to {t}|Nobody can {skill} on the first day],"
        said {f}. "I fell [ten|twenty|a hundred] times before I could {skill}. Try a little every day." So
        {h} tried once more. On [Monday|the first day] {h.he} failed. On [Tuesday|the second day] {h.he}
        failed again, but not so badly. "[That is better|Good]!" said {f}. "[Once more|Again]!"

        Every day {h} tried, in sunshine and in rain, and {f} was always there. And then, [one morning|one
        evening, when {h.he} had stopped counting], it happened. "Look!" cried {h}. "I can do it! I can
        {skill}!" {F} clapped and laughed.

        {T} came by and [opened {t.his} eyes wide|could not believe it]. "How did you do that?" asked {t}.
        "I tried one more time," said {h}. ["If you like, I will teach you too."|Then {t} said, "I am sorry
        that I laughed. Will you teach me?" And {h} did.]""",
        morals=("If you fall, try one more time.", "A little every day goes a long way."),
        asks=(
            ("What did {h} want to learn?", "{H} wanted to learn to {skill}."),
            ("Who laughed at {h}?", "{T} laughed at {h.him}."),
            ("Who helped {h}?", "{F} helped {h.him} every day."),
        ),
    ),
    Plot(
        about=("{h.a} who baked a cake for {f.a}", "a cake that needed many friends"),
        titles=("The Cake", "{H} Bakes a Cake", "A Cake for {F}"),
        cast={"h": "young worker", "f": "young elder", "a": "animal", "b": "animal"},
        pick={"need": ("honey", "eggs", "sugar", "milk", "flour", "butter")},
        text="""
        <day> {h} said, "Today I will bake a cake for my friend{f.called}[. It is {f.his} birthday|, for
        {f.he} has been so kind to me]." The friend was {f.a}[ who lived next door|].

        {h} took a big bowl [and a wooden spoon|]. {h.He} had nearly everything, but there was no {need}.
        "[Oh dear|Oh no]! A cake without {need} is no cake," said {h}. So {h.he} <went> to {a.a}{a.called}.
        "Good morning, {a.call}. Have you some {need}?" "No," said {a}, "but [I have a cup of nuts|I have
        some sweet berries]. Take them. And ask {b}."

        So {h} <went> on to {b.a}{b.called}. "Good morning, {b.call}. Have you some {need}?" "[Yes, I
        have|Yes, plenty]!" said {b}. "Here is some {need}. But may I [lick the spoon|have a piece of the
        cake]?" "Of course," said {h}. "Come to my house [this evening|at four o'clock], and {a} must come
        too."

        {h} ran home with the {need}. {h.He} mixed and stirred, and put the cake in the oven. Soon the whole
        house smelled [sweet|of cake]. {a} came, and {b} came, and at last they all carried the cake to {f}.
        "Surprise!" they <cried>.

        {f} [could hardly speak for joy|clapped and laughed]. "[For me?|Is it for me?]" {f.he} asked. "For
        you," said {h}, "and {a} and {b} helped to make it." They [sat in a ring and ate|cut the cake into
        four pieces], and there was not a crumb left.""",
        morals=("Many hands make the sweetest cake.", "A cake is best when it is eaten with friends."),
        asks=(
            ("What did {h} need for the cake?", "{H} needed {need}."),
            ("Who gave {h} the {need}?", "{B} gave {h.him} the {need}."),
            ("For whom was the cake?", "The cake was for {f}."),
        ),
    ),
    Plot(
        about=("{h.a} and {h.his} sick friend", "{h.a} who made soup for {f.a}"),
        titles=("The Sick Friend", "Soup for {F}", "{H} Helps {F}"),
        cast={"h": "young", "f": "young", "w": "wise"},
        pick={
            "cure": (
                "a blue flower that grows on the hill",
                "mint that grows by the stream",
                "honey from the old oak",
                "a red berry that grows in the deep wood",
            )
        },
        text="""
        Every morning {h} met {h.his} friend {f.both} [at the bridge|by the big stone|under the chestnut
        tree]. But <day> {f} did not come. {h} waited and waited. "[Something is wrong|This is not like
        {f}]," {h.he} said, and {h.he} ran to the house of {f}.

        {F} lay in bed, [pale and hot|and {f.his} eyes were dull]. "I am ill," {f.he} whispered.
        "[Everything hurts|I cannot get up]." {h} [put a cool cloth on {f.his} head|brought {f.him} water].
        Then {h.he} ran to {w.a}{w.called}. "{F} is ill! What can I do?" "You need {cure}," said {w}. "But
        [the way is long|it is far], and night is coming."

        {h} did not wait. {h.He} ran [over the fields|past the mill] and [through the wood|up the hill]. It
        grew dark, and a cold rain began to fall. <tired h>, but {h.he} thought of {f} and went on. And
        there, [in the light of the moon|just as {w} had said], {h.he} found it. {h.He} took only as much as
        {h.he} needed and hurried back.

        {h} made a warm drink and held the cup for {f}. {f} drank it all and fell asleep. {h} sat by the bed
        the whole night. When the sun came up, {f} opened {f.his} eyes. "I am hungry!" {f.he} said. {h}
        laughed [with joy|and cried at the same time].

        [In a few days|After three days] {f} was well again. [And when {h} caught a cold from the rain, it
        was {f} who sat by {h.his} bed.|And every morning they met in the same place as before.]""",
        morals=("A true friend comes when you are ill.", "Love does not ask how long the way is."),
        asks=(
            ("Who was ill?", "{F} was ill."),
            ("What did {w} say that {f} needed?", "{W} said that {f} needed {cure}."),
            ("Who sat by the bed all night?", "{H} sat by the bed of {f}."),
        ),
    ),
    Plot(
        about=("{h.a} and a big new neighbour", "a new neighbour, {f.a}"),
        titles=("The New Neighbour", "{H} Knocks at the Door", "Who Lives Next Door?"),
        cast={"h": "young", "f": "fearsome", "t": "animal"},
        things={"o": "treat"},
        text="""
        <day> somebody new [moved into the empty house|came to live nearby]. It was {f.a}{f.called}.
        [Everyone was afraid.|All the neighbours locked their doors.] "[Have you seen those big teeth|Have
        you heard how loud {f.he} is]?" whispered {t.a}{t.called}. "[Stay away from {f}|Do not go near]!"

        {h} watched from the window. {f} sat outside alone, day after day. No one came to visit, and no one
        said good morning. "{F} does not look wicked," said {h}. "{f.He} looks [sad|lonely]."

        So {h} took {o.a} and <went> to the house of the {f.kind}. <afraid h>, but {h.he} knocked. The door
        opened. "What do you want?" said a deep voice. "I am {h}, your neighbour," said {h}. "I have brought
        you a {o}." {F} looked at the {o} [for a long time|], and then a tear rolled down {f.his} nose.
        "Nobody ever brought me a {o} before," said {f}.

        They sat down and shared the {o}. {f} [told stories of far countries|knew a hundred songs|showed {h}
        how to carve little boats]. The next day {h} brought {t} along. {t} was [shaking|very quiet] at
        first, but soon {t.he} was laughing too.

        And when [a tree fell across the road|the big snow came|the river broke its bank], who was strong
        enough to help them all? It was {f}. "[How foolish we were|I was wrong about you]," said {t}. After
        that, no one was afraid of {f} [any more|again].""",
        morals=(
            "Do not judge anyone before you have knocked at the door.",
            "A loud voice may hide a soft heart.",
        ),
        asks=(
            ("Who was the new neighbour?", "It was {f.a}{f.called}."),
            ("What did {h} bring?", "{H} brought {o.a}."),
            ("Why was {f} sad?", "{F} was lonely, for everyone was afraid of {f.him}."),
        ),
    ),
    Plot(
        about=("{h.a} who planted a seed", "{h.a} and a seed that would not grow"),
        titles=("The Seed", "{H} and the Seed", "Wait and See"),
        cast={"h": "young", "f": "elder", "t": "animal"},
        things={"o": "plant"},
        text="""
        <day> {f.a}{f.called} gave {h} a [tiny|little|round] seed. "What is it?" asked {h}. "Plant it and
        see," said {f}. "But you must be patient."

        {h} dug a hole in the garden, put the seed in and covered it with earth. {h.He} gave it water and
        sat down to wait. {h.He} waited all day, but nothing happened. "[Grow, seed, grow|Please grow]!"
        said {h}. The next day {h.he} came again. Still there was only brown earth.

        {T.A}{t.called} came by. "[Nothing is there|Your seed is dead]," said {t}. "[Dig it up and throw it
        away|You are wasting your time]." {h} [almost did so|was not sure]. But {h.he} thought of what {f}
        had said. "No," said {h}, "I will wait a little longer." And {h.he} watered it [again that
        evening|every day], in wind and in sun.

        A week went by, and another week. Then, <day>, there was something green! It was no bigger than a
        [pin|finger nail]. {h} ran to {f}. "It is growing!" {h.he} cried. Day by day it grew. [First it had
        two leaves, then four.|It grew as high as {h.his} nose.] And in [summer|the end] it was {o.a}, [the
        finest in the whole village|and everyone came to see it].

        "How did you make it grow so well?" asked {t}. "I gave it water," said {h}, "and I waited." {F}
        [smiled|winked] and gave {h} another seed. ["This one is for {t}," {f.he} said.|]""",
        morals=("Good things need time.", "Those who can wait will see the flower."),
        asks=(
            ("What did {f} give to {h}?", "{F} gave {h.him} a seed."),
            ("What grew from the seed?", "It became {o.a}."),
            ("What did {t} say?", "{T} said that the seed was no good, but {h} waited."),
        ),
    ),
    Plot(
        about=("{h.a} who built a snowman", "{h.a} and the first snow"),
        titles=("The Snowman", "{H} in the Snow", "The First Snow"),
        cast={"h": "young", "f": "young"},
        things={"o": "treasure"},
        text="""
        One winter morning {h} looked out and saw that everything was white. "Snow!" {h.he} cried. {h.He}
        ran to fetch {h.his} friend {f.both}. [They threw snowballs until their noses were red.|They slid
        down the hill, again and again.]

        Then they built a snowman. {h} made the big round body, and {f} made the head. They gave it [two
        black stones|two nuts] for eyes and a carrot for a nose. But something was missing. {h} took {h.his}
        own {o.full} and gave it to the snowman. "Now [you are fine|he is ready]," said {h}.

        All winter long the snowman stood there. Every morning {h} and {f} said, "Good morning, snowman!"
        [And once, by moonlight, {h} thought that he smiled.|They told him all their secrets.] But [one
        day|in March] the sun grew warm. Drip, drip, drip. The snowman grew smaller and smaller. "Do not
        go!" said {h}. <sadly h>.

        [At last|One morning] there was only a pool of water, and in it lay the {o} [and the carrot|]. {h}
        picked up the {o} and held it. "He is gone," {h.he} said. "[Look|Wait]," said {f}. Where the snowman
        had stood, a little [snowdrop|white flower] was growing. "He gave his water to the flower," said
        {f}. "[He is not quite gone|So something of him is still here]."

        {h} smiled. "Next winter we will build him again," {h.he} said. And they did.""",
        morals=("What we love comes back in another shape.", "Every ending is the start of something new."),
        asks=(
            ("What did they build?", "They built a snowman."),
            ("What did {h} give to the snowman?", "{H} gave him {h.his} {o.full}."),
            ("What grew where the snowman had stood?", "A little white flower grew there."),
        ),
    ),
    Plot(
        about=("{h.a} who heard a strange noise at night", "a strange noise in the night"),
        titles=("The Strange Noise", "A Noise in the Night", "What Was That?"),
        cast={"h": "young", "f": "young"},
        pick={
            "noise": ("Tap, tap, tap!", "Scratch, scratch!", "Bump, bump!", "Whoo, whoo!"),
            "cause": (
                "a branch that the wind beat against the window",
                "a tiny kitten that wanted to come in",
                "a hedgehog with a pot on its head",
                "an old shutter that had come loose",
                "a little bird that had lost its way",
            ),
        },
        text="""
        <night> {h} lay in bed. It was [dark|very late], and everyone was asleep. Then {h.he} heard a
        strange noise. "{noise}" {h} sat up. "{noise}" There it was again. <afraid h>. "Is it a
        [ghost|wolf|robber]?" {h.he} thought.

        {h} woke {f.both} [who was staying for the night|who slept in the same room]. "Listen!" {h.he}
        whispered. "{noise}" said the noise. "[It is a monster|It has a hundred teeth]!" said {f}, and
        [{f.he} hid under the bed|pulled the blanket over {f.his} head]. But {h} said, "[Let us go and
        look|If we do not look, we shall never know]. You hold my hand, and I will hold the lamp."

        Step by step they crept to the door. [The floor creaked.|Their shadows danced on the wall.]
        "{noise}" It was louder now. {h} [counted to three|held {h.his} breath] and opened the door. And
        what did they see? It was only {cause}!

        {h} began to laugh, and {f} laughed too. ["So that is your monster!" said {h}.|"A monster with a
        hundred teeth!" said {h}.] [They put everything right|They took care of it], and then they each
        drank a cup of warm milk. "{H}, you are [brave|the bravest of us all]," said {f}. "No," said {h}, "I
        only wanted to know." [Then they slept until morning.|Soon they were both asleep.]""",
        morals=(
            "Most monsters are small when you hold up a lamp.",
            "What we do not know seems bigger than it is.",
        ),
        asks=(
            ("What was the noise?", "It was only {cause}."),
            ("Who hid from the noise?", "{F} hid from the noise."),
            ("Why did {h} open the door?", "{H} wanted to know what it was."),
        ),
    ),
    Plot(
        about=("a surprise for {h.a}", "{h.a} who thought that everyone forgot {h.his} birthday"),
        titles=("The Forgotten Birthday", "A Surprise for {H}"),
        cast={"h": "young", "a": "animal", "b": "young", "c": "elder"},
        things={"o": "treasure"},
        text="""
        It was {h.his} birthday. {h} woke up early and [washed {h.his} face|put on {h.his} best clothes].
        "Today everyone will sing for me," {h.he} thought.

        {h.He} <went> out and met {a.a}{a.called}. "Good morning!" said {h}. "Do you know what day it is?"
        "[It is Tuesday|It is a fine day]," said {a}, "and I have no time." And {a.he} hurried away. Next
        {h} met {b.both}. "Good morning, {b.call}! Do you know what day it is?" "[It is washing day|I cannot
        stop now]," said {b}, and {b.he} ran off with a [big bag|box under {b.his} arm].

        <sadly h>. "[They have all forgotten|Nobody remembers my birthday]," {h.he} said. {h.He} sat by the
        [stream|road] [and threw stones into the water|until the sun went down]. Then {c.a}{c.called} came
        along. "[Will you help me|I am old. Please help me] to carry this basket home?" asked {c}. {h} was
        sad, but {h.he} was kind too, so {h.he} took the basket.

        They came to the house of {c}. It was dark inside. {c} opened the door, and suddenly there was light
        everywhere! "Happy birthday, {h.call}!" <cried> {a} and {b} and all the others. There was a cake
        with candles, and there was a present too. It was {o.a}. "[We were busy all day|We had to keep it
        secret]," said {a}. "[How could we forget you|Did you think we forgot]?" said {b}.

        {h} laughed until {h.he} cried. [It was the best birthday of {h.his} life.|"This is the best day of
        the year," {h.he} said.] And {h.he} [played with the {o} all evening|took the {o} to bed that
        night].""",
        morals=("Friends remember, even when they seem to forget.",),
        asks=(
            ("What did {h} get?", "{H} got {o.a}."),
            ("Did the friends forget the birthday?", "No, they had made a surprise for {h}."),
            ("Who asked {h} to carry the basket?", "It was {c}."),
        ),
    ),
    Plot(
        about=("{h.a} who wanted to be like {f.a}", "{h.a} who was not content"),
        titles=("{H} Wants to Be Like {F}", "I Wish I Were a {F.kind}"),
        cast={"h": "small", "f": "big", "t": "wise"},
        text="""
        But {h} was not happy. "[I am so small|I am only a {h.kind}]," {h.he} said. "I wish I were like
        {f}!" The {f.kind} was {f.a}, and {f.he} was [big and strong|as tall as a house].

        So {h} tried to be like {f}. {h.He} tried to [walk|stamp] like {f}, but {h.he} fell over. {h.He}
        tried to [roar|shout] like {f}, but only a little squeak came out. {h.He} tried to eat as much as
        {f}, and {h.he} got a stomach ache. [All the others laughed.|<sadly h>.]

        {T.A}{t.called} had seen it all. "Why do you want to be {f}?" asked {t}. "There is already one {f}.
        But there is only one {h}." {h} did not understand, and {h.he} went away.

        <next> there was a great cry. {f} had [a thorn deep in {f.his} foot|got a bee in {f.his} ear|dropped
        {f.his} only key into a narrow crack]. "[Help|Oh, help]!" cried {f}. "I am so big, and I cannot
        reach it!" Everyone tried, but they were all too big. "Let me try," said {h}. {h} was so small that
        {h.he} [could see and reach what no one else could|fitted where no one else could go]. In a moment
        it was done.

        "Thank you, {h.call}!" said {f}. "[I wish I were as small and clever as you!|What would I do without
        you?]" {h} laughed. Then {h.he} understood the words of {t}. ["I am just the right size," {h.he}
        said.|From that day on {h} was glad to be a {h.kind}.]""",
        morals=("Everyone is good at being himself.", "Small ones can do great things."),
        asks=(
            ("Whom did {h} want to be like?", "{H} wanted to be like {f}."),
            ("Who helped {f}?", "{H} helped {f.him}."),
            ("Why was {h} able to help?", "{H} was small enough to reach."),
        ),
    ),
)
