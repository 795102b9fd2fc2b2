"""Plots of the wide world: storms, journeys, kings, riddles, dragons, wishes."""

from __future__ import annotations

from stories.plot import Plot

PLOTS = (
    Plot(
        about=("a great storm", "{h.a} whose house was blown down", "{h.a} and a big storm"),
        titles=("The Great Storm", "After the Storm", "{H} and the Storm"),
        cast={"h": "animal", "f": "animal", "g": "animal"},
        text="""
        {h.His} neighbours were {f.a}{f.called} and {g.a}{g.called}. [They said good morning to each other,
        but that was all.|{H} hardly knew them.]

        <day> black clouds came over the hills. The wind began to [howl|roar], and the rain beat down. All
        night the storm [shook the trees|raged]. {h} [lay in bed and shook|held the door shut with all
        {h.his} might]. Then, with a great crash, the roof flew away, and {h.his} home was gone!

        {h} ran out into the storm. "[Help! Help!|Where shall I go?]" cried {h}. {h.He} knocked at the door
        of {f}. "Come in, come in!" <cried> {f}. "[You are wet through|Quick, sit by the fire]!" There {h}
        was safe and dry, [and {f} made hot soup|and {f} gave {h.him} a warm blanket].

        <next> the storm was over. [The sky was blue again.|The sun shone as if nothing had happened.] But
        of the old home of {h} there was nothing left but [sticks and mud|one wall and a door]. <sadly h>.
        "Do not cry," said {f}. "We will build it up again." And {g} came too and said, "I am good at
        [digging|carrying wood]. Let me help you."

        {f} brought [stones|branches], {g} brought [moss and leaves|wood], and {h} [put everything in its
        place|made a new door]. They worked for three days. The new home was [stronger|warmer and brighter]
        than the old one. When it was done, {h} made a feast for {f} and {g}. "The storm took my house,"
        said {h}, "but it gave me [two friends|you two].\"""",
        morals=(
            "In a storm you learn who your friends are.",
            "What the wind breaks, friends can build again.",
        ),
        asks=(
            ("Who took {h} in?", "{F} took {h.him} in."),
            ("What did the storm do?", "The storm blew away the home of {h}."),
            ("Who helped to build the new home?", "{F} and {g} helped {h}."),
        ),
    ),
    Plot(
        about=("{h.a} who went on a long journey", "{h.a} who carried {o.a} to {f.a}"),
        titles=("The Long Way", "The Journey of {H}", "{H} and the {O}"),
        cast={"h": "young", "f": "elder ruler", "a": "animal", "b": "animal"},
        things={"o": "treasure"},
        pick={
            "goal": (
                "beyond the mountains",
                "on the other side of the great forest",
                "by the sea",
                "at the end of the long road",
            )
        },
        text="""
        <day> {h} [found|dug up] {o.a} [in the garden|on the road]. On it was written a name: it belonged to
        {f.a}{f.called} who lived {goal}. "[It is not mine|Someone is missing this]," said {h}. "I will take
        it back." {h.He} packed some bread and [cheese|apples] and set off.

        First {h.he} came to a wide river. There was no bridge. On the bank sat {a.a}{a.called}. "Where are
        you going?" asked {a}. "I am taking this {o} to {f}, {goal}," said {h}. "[I know a place where the
        water is low|I have a little boat]," said {a}. "Come, I will take you across." {h} gave {a.him} some
        of the bread, and they crossed the river [together|safely].

        Then {h.he} came to a [dark forest|steep hill]. The path was [narrow|lost among the stones], and
        night was coming. <tired h>. There {h} saw {b.a}{b.called}. "Have you lost your way?" asked {b}. "I
        am taking this {o} to {f}," said {h}. "Sleep here tonight," said {b}. "[In the morning I will show
        you the path|Tomorrow I will go with you to the last hill]."

        On the third day {h} [saw a light|came to the house]. {f} [stood at the door|was sitting at the
        window]. "Is this yours?" asked {h}, and {h.he} held out the {o}. {f} [cried out for joy|could not
        believe {f.his} eyes]. "My {o}! [I lost it long ago|My mother gave it to me], and I thought it was
        gone for ever. You came all this way to bring it back?"

        {f} [gave {h} a warm supper and a soft bed|made a feast for {h}], and {h} told of the river and of
        {a} and {b}. "[The road was long|It was far]," said {h}, "but I found a friend at every turn." [And
        on the way home {h.he} visited them both.|]""",
        morals=("An honest heart makes the longest road short.", "Who walks far will meet many friends."),
        asks=(
            ("What did {h} find?", "{H} found {o.a}."),
            ("To whom did the {o} belong?", "It belonged to {f}, who lived {goal}."),
            ("Who helped {h} across the river?", "It was {a.a}{a.called}."),
        ),
    ),
    Plot(
        about=("a riddle", "{h.a} who answered a riddle", "{h.a} and a {g.kind} who asked a riddle"),
        titles=("The Riddle", "The Riddle at the Bridge", "{H} and the {G.kind}"),
        cast={"h": "young worker", "g": "gatekeeper"},
        riddle=True,
        pick={
            "need": (
                "to visit {h.his} grandmother",
                "to go to the market",
                "to bring bread to {h.his} sister",
                "to see the sea",
            )
        },
        text="""
        <day> {h} set out {need}. The road led over an old bridge, and under the bridge lived {g.a}.

        "Stop!" <cried> the {g.kind}. "No one may cross my bridge who cannot answer my riddle." "And if I
        cannot?" asked {h}. "[Then I will throw you into the water|Then you must turn back and never come
        again|Then you must stay here and sweep my bridge]!" said the {g.kind}. <afraid h>, but {h.he} said,
        "[Ask me|Tell me your riddle], then."

        The {g.kind} [laughed|grinned] and asked, "{riddle}"

        <thought h>. [The water ran by under the bridge.|A bird sang in the willow.|{h.He} looked at the
        sky, and {h.he} looked at the ground.] [The {g.kind} began to count. "One, two, three..."|"Well?"
        said the {g.kind}. "I am waiting."] Then {h} began to smile. "I know it!" {h.he} said. "It is
        {answer}!"

        The {g.kind} [stamped his foot|pulled his beard|opened his mouth and shut it again]. "{Answer}! It
        is {answer}. [Nobody ever guessed it before|You are right]." And then he sighed. "[Now I have no
        riddle any more|That was my only riddle]," he said, "[and what shall I do all day?|and now I shall
        be bored.]" {H} was sorry for him. "[I will tell you a new riddle every time I come by|Let us think
        of a new one together]," said {h}.

        So {h} crossed the bridge {need}. And ever after, when {h} came that way, the {g.kind} [called out,
        "Have you a new riddle for me?"|was waiting with a smile].""",
        morals=("A quick mind opens the way.", "Think before you answer, and think before you are afraid."),
        asks=(
            ("What was the riddle?", "The riddle was: {riddle}"),
            ("What was the answer to the riddle?", "The answer was {answer}."),
            ("Who lived under the bridge?", "It was {g.a}."),
        ),
    ),
    Plot(
        about=("{h.a} who was kind to a poor old {s}", "{h.a} and {o.a}, a gift from a stranger"),
        titles=("The Stranger's Gift", "{H} and the Stranger", "The Magic {O}"),
        cast={"h": "child worker"},
        things={"o": "gift"},
        pick={
            "s": ("beggar", "stranger", "pedlar"),
            "power": (
                "it fills an empty table with food",
                "it gives light in the darkest night and never goes out",
                "whoever touches it grows well again",
                "it can call the rain",
            ),
        },
        text="""
        <day> {h} was [on the way home|gathering wood in the forest|sitting at the door] when an old {s}
        came along. [His coat was torn|His shoes were full of holes], and he [leaned on a stick|could hardly
        walk]. Many people had passed him, but [no one had stopped|all of them had looked away].

        "[Could you spare a bit of bread?|Please give me something to eat,]" asked the {s}. {h} did not have
        much, but {h.he} said, "[Sit down beside me|Come and rest], and we will share what I have." They ate
        and talked until the sun went down.

        When the old {s} stood up, he took something out of his [bag|pocket]. It was {o.a}. "You gave me a
        part of the little you had," he said. "Take this. It is not like other things: {power}. But it works
        only for those who use it to help others." [Then he went round the bend of the road, and when {h}
        looked, nobody was there.|Before {h} could thank him, he was gone.]

        [Not long after|That same year], [bad times came to the village|there was great trouble in the
        land]. {h} took the {o} and went from house to house. And what the {s} had said was true. {h} helped
        [the sick and the poor|the old people and the children], and asked for nothing.

        A rich man heard of it. "Sell me your {o}," he said. "I will give you [a hundred gold coins|a house
        and a horse]." "[It is not for sale|I cannot sell it]," said {h}. So the rich man [stole it in the
        night|took it by a trick]. But in his hands it was only a common {o}, and he threw it out of the
        window. In the morning {h} found it on the path[, and all was well|].""",
        morals=("A kind deed is never lost.", "What is given freely works the best magic."),
        asks=(
            ("What did the {s} give to {h}?", "The {s} gave {h.him} {o.a}."),
            ("Why did the {s} give it?", "{H} had shared {h.his} food with him."),
            ("What did the rich man do?", "He took the {o}, but it did not work for him."),
        ),
    ),
    Plot(
        about=("a greedy {h.kind}", "{h.a} who wanted more and more gold"),
        titles=("The Greedy {H.kind}", "The {H.kind} Who Wanted More", "Gold and Bread"),
        cast={"h": "ruler", "f": "child", "g": "magic"},
        text="""
        {h} had [a room full of gold|seven chests of gold], but it was never enough. Every day {h.he}
        counted the coins, and every day {h.he} said, "[More|I want more]!" The people of the land had to
        [pay and pay|give the half of all they had], until they were [poor and hungry|as poor as mice].

        <day> {g.a} came to the castle. "You may have one wish," said {g}. "I wish," said {h}, "that
        everything on my table should turn to gold!" "[Think well|Are you sure]," said {g}. "I am sure!"
        <cried> {h}. And so it was. The [plates and cups|table and the cloth] turned to gold. {h}
        [clapped|danced about the room].

        Then {h} was hungry and sat down to eat. But the bread turned to gold, and so did [the soup|the
        apples|the meat]. {h.He} could not bite it, and {h.he} could not drink the golden milk. One day went
        by, and then another. {h} grew [thin|weak]. "[What good is all my gold?|I would give it all for a
        piece of bread!]" {h.he} said.

        In the kitchen there worked a child{f.called}. {F} heard {h} crying. "[I have a little bread|Here is
        half of my bread], and it is not on your table," said {f}. "Eat it here on the step with me." {h}
        sat down on the step and ate. [Nothing had ever tasted so good.|It was the best meal of {h.his}
        life.] "You are poor," said {h}, "and you gave me half of your bread. I am rich, and I gave you
        nothing."

        [The next morning|That same day] {h} opened the doors of the castle and gave the gold back to the
        people. When the last coin was gone, {g} came again and took the wish away. And {h} was
        [glad|happier than ever before], and every evening {h.he} ate [bread|supper] with {f} on the step.""",
        morals=("You cannot eat gold.", "Enough is better than more.", "The greedy are always poor."),
        asks=(
            ("What did {h} wish for?", "{H} wished that everything on the table should turn to gold."),
            ("Who gave bread to {h}?", "It was {f}, who worked in the kitchen."),
            ("What did {h} do with the gold?", "{H} gave it back to the people."),
        ),
    ),
    Plot(
        about=("a race between {h.a} and {f.a}", "{h.a} who ran a race"),
        titles=("The Race", "{H} and {F}", "Slow and Steady"),
        cast={"h": "slow", "f": "fast", "j": "wise"},
        text="""
        {h} was not fast, but {h.he} never gave up. {F.A}{f.called} lived near by, and {f.he} was the
        fastest of them all. "[Nobody can run like me|Look how fast I am]!" {f} said every day. "And look at
        {h}! {h.He} is so slow."

        <day> {h} said, "Let us have a race." Everyone laughed. "A race with you? [I will win before you
        have taken two steps|That will be a joke]!" said {f}. They asked {j.a}{j.called} to be the judge. "[To the
        old mill|Round the lake|To the top of the hill]," said {j}. "One, two, three, go!"

        {f} shot away like an arrow. {h} went step by step. [Soon {f} was so far ahead that {f.he} could not
        see {h} any more.|In a moment {f} was out of sight.] "[I have plenty of time,|Why should I hurry?]"
        said {f}. [{f.He} lay down under a tree and fell asleep.|{f.He} stopped to eat sweet clover, and
        then {f.he} lay down for a nap.|{f.He} stopped to tell everyone how fast {f.he} was.]

        {h} did not stop. The sun was hot, and the way was long, but {h} went on, step by step. {h.He}
        passed {f} and went on. [At last {f} woke up|Then {f} saw how late it was]. {f} ran and ran, faster
        than ever before. But it was too late! {h} had just come in. "{H} has won!" <cried> {j}, and
        everybody cheered.

        {f} hung {f.his} head. "[I was proud and foolish|You won fairly]," {f.he} said. "[It was a good
        race|Let us run again tomorrow, for fun]," said {h}[, and they shook hands|].""",
        morals=("Slow and steady wins the race.", "He who boasts should not fall asleep."),
        asks=(
            ("Who won the race?", "{H} won the race."),
            ("Who was the judge?", "The judge was {j}."),
            ("Why did {f} lose?", "{F} stopped on the way because {f.he} was too proud."),
        ),
    ),
    Plot(
        about=("{h.a} who built {o.a}", "friends who built {o.a}"),
        titles=("{H} Builds a {O}", "The {O.full}", "Three Builders"),
        cast={"h": "young", "f": "animal", "g": "animal big"},
        things={"o": "building"},
        text="""
        <day> {h} said to {f.a}{f.called}, "I want to build {o.a}." "[What a fine idea|A {o}]!" said {f}. "I
        will help you."

        They [carried wood|looked for sticks and boards] all day. {h} held the nails, and {f} held the
        hammer. Bang, bang, bang! In the evening the {o} was finished. But [it leaned to one side|it looked
        rather crooked], and when {h} put a hand on it, it fell down with a crash. {h} and {f} looked at
        each other. [Then they laughed.|"Oh," said {f}.]

        "[We must begin again|Let us try once more]," said {h}. The next day they built it again,
        [higher|bigger] this time. But in the night a wind came, and down it fell. <sadly h>. "[I give up|It
        is no use]," said {h}.

        {G.A}{g.called} had watched them. "[You began at the top|You built too fast]," said {g}. "First you
        need something strong to stand on." {g} brought great stones and [laid them in a row|pressed them
        deep into the earth]. On the stones {h} and {f} laid the beams, and they [tied them with rope|fixed
        them well]. They worked slowly and carefully, [for a whole week|day after day].

        At last the {o} was ready. {h} [jumped on it|pushed against it with all {h.his} might], and it did
        not move. The wind came, and it did not move. "[Hurrah|We have done it]!" <cried> {h} and {f} and
        {g}. {h} painted three names on it, so that everyone could see who had built the {o}. [That evening
        they sat together beside it and watched the sun go down.|]""",
        morals=(
            "Begin with a strong foundation.",
            "What falls down can be built up better.",
            "Many hands make light work.",
        ),
        asks=(
            ("What did {h} want to build?", "{H} wanted to build {o.a}."),
            ("Who brought the great stones?", "{G} brought the stones."),
            ("What happened the first time?", "The {o} fell down."),
        ),
    ),
    Plot(
        about=("a secret garden", "{h.a} who found a key to a garden"),
        titles=("The Secret Garden Door", "The Little Key", "{H} and the Hidden Garden"),
        cast={"h": "child", "f": "bird", "g": "elder"},
        text="""
        <day> {h} was walking along an old wall. {F.A}{f.called} [hopped along in front of {h.him}|sang on
        the wall], as if {f.he} wanted to show {h.him} something. {h} followed. {f} stopped beside a stone,
        and under the stone {h} found a rusty key!

        "[What door does it open|There must be a door]," said {h}. {h.He} looked along the wall. {f} flew to
        a place where the ivy was thick. {h} pushed the leaves aside, and there was a little door. The key
        [turned with a squeak|fitted]. Behind the door lay a garden. But [everything in it was dry and
        grey|the flowers were dead, and weeds grew everywhere].

        "Poor garden," said {h}. "[Nobody has loved you for a long time|I will take care of you]." Every day
        {h.he} came and pulled up the weeds and brought water. {f} [sat in the tree and sang|kept {h.him}
        company]. One day {h} saw a small green point in the earth, and then another. The garden was alive!

        In [spring|May] there were roses and lilies and a hundred other flowers. <day> {h} heard steps. At
        the door stood {g.a}{g.called}. {h} was afraid that {g.he} would be angry. But {g} had tears in
        {g.his} eyes. "[This was the garden of my sister|I planted this garden when I was young]," said {g}.
        "I lost the key, and then I lost hope. And now it is in bloom!"

        {h} held out the key. "It is yours," {h.he} said. But {g} shook {g.his} head. "[It is ours|Let it be
        for both of us]," {g.he} said. "And the door shall never be locked again." [Soon all the children
        came to play there.|And {f} built a nest over the door.]""",
        morals=("Whatever is cared for will bloom.", "A garden grows where someone loves it."),
        asks=(
            ("What did {h} find under the stone?", "{H} found a rusty key."),
            ("What was behind the door?", "There was a garden behind the door."),
            ("Who showed {h} the way?", "It was {f.a}{f.called}."),
        ),
    ),
    Plot(
        about=("{h.a} who wanted to catch a star", "{h.a} and a fallen star", "a wish upon a star"),
        titles=("The Little Star", "{H} and the Star", "A Star for {H}"),
        cast={"h": "young", "f": "wise bird"},
        text="""
        Every night {h} looked up at the stars. [There was one star that {h.he} loved best.|"How bright they
        are!" {h.he} said.] "I wish I had a star of my own," said {h}.

        <night> a star fell from the sky. It fell [into the meadow|behind the hill], and {h} ran to find it.
        There it lay in the grass, small and bright, and it was crying. "[I want to go home|I have fallen
        down, and I cannot get up]," said the star. {h} took it up carefully. It was warm in {h.his} hands.
        "[Now I have a star of my own|You can stay with me]," said {h}.

        {h} took the star home and made it a bed in a box. But each night its light grew weaker. "[What is
        the matter|Are you ill], little star?" asked {h}. "A star cannot live in a box," said the star.
        <sadly h>, for {h.he} loved it very much. {h} asked {f.a}{f.called} what to do. "[If you love it,
        you must let it go|You know what to do]," said {f}. "[Climb the highest hill and throw it up|Take it
        to the top of the tallest tree]."

        So {h} carried the star up and up. {f} showed {h.him} the way. At the top {h} kissed the star and
        said, "Goodbye, little star." Then {h.he} threw it up with all {h.his} might. It flew higher and
        higher, until it was [back in its place|among its sisters again].

        {h} walked home alone. But when {h.he} looked up, one star [winked|twinkled more brightly than all
        the others]. "[It remembers me|It is saying good night]," said {h}. [And every night {h} said good
        night to the star.|And it was better than a star in a box.]""",
        morals=("If you love something, let it be free.", "Some things shine best where they belong."),
        asks=(
            ("What fell from the sky?", "A star fell from the sky."),
            ("Why did the star grow weaker?", "A star cannot live in a box."),
            ("Who gave advice to {h}?", "{F} told {h} to let the star go."),
        ),
    ),
    Plot(
        about=("{h.a} who found a lost {f.kind}", "{h.a} who brought {f.a} back home"),
        titles=("The Lost {F.kind}", "{H} Finds a Little One", "Where Is Your Mother?"),
        cast={"h": "child worker", "f": "young", "w": "animal"},
        text="""
        <day> {h} was walking in the forest when {h.he} heard someone crying. Under a fern sat {f.a}. "[Why
        do you cry|What is wrong], little one?" asked {h}. "I have lost my mother," said the {f.kind}. "[I
        ran after a butterfly|I only wanted to see the other side of the hill], and now I do not know the
        way."

        "[We will find her|Do not be afraid]," said {h}. "What is your name?" "My mother calls me
        [{f.call}|Little One|her star]," said the {f.kind}. {h} [took it by the hand|carried it in {h.his}
        arms]. They went [along the stream|through the trees]. "What does your mother look like?" asked {h}.
        "She is the most beautiful of all," said the {f.kind}. [{H} had to smile.|That was not much help.]

        They met {w.a}{w.called}. "Have you seen a mother who is looking for her child?" asked {h}. "[Yes|Oh
        yes]!" said {w}. "She was [by the old bridge|at the three birches], and she was calling and calling.
        [Hurry|Go quickly], and you will find her there."

        They hurried to the place. "Mother!" cried the {f.kind}. "My child!" cried the mother. She [hugged
        her little one tight|laughed and cried at the same time]. "Where have you been? I looked for you
        everywhere!" Then she turned to {h}. "You have brought me back the dearest thing I have. How can I
        thank you?" "[I am glad that you are together again|You need not thank me]," said {h}.

        But the mother did not forget. [Every autumn there was a heap of nuts before the door of {h}.|When
        {h} once lost the way in the snow, it was she who led {h.him} home.] [And the little
        {f.kind}{f.called} never ran so far away again.|]""",
        morals=("Who helps a child helps its mother too.", "Stay close to those who love you."),
        asks=(
            ("Whom did {h} find in the forest?", "{H} found {f.a}."),
            ("What had the {f.kind} lost?", "It had lost its mother."),
            ("Who had seen the mother?", "{W} had seen her."),
        ),
    ),
    Plot(
        about=("{h.a} in a trap", "a big {h.kind} and a small {f.kind}"),
        titles=("The {H.kind} and the {F.kind}", "The Net", "A Small Friend"),
        cast={"h": "fearsome", "f": "small", "t": "animal"},
        pick={"trap": ("a hunter's net", "a deep pit", "a tangle of ropes and thorns")},
        text="""
        One hot day {h} lay asleep in the shade. {F.A}{f.called} ran by and [fell right on {h.his}
        nose|tripped over {h.his} tail]. {h} woke up and [caught the little {f.kind}|put a great paw on
        {f.him}]. "[How dare you wake me|Who is walking on me]?" <cried> {h}.

        "Please let me go!" said {f}. "[I did not mean it|I did not see you]. If you let me go, perhaps one
        day I can help you." {h} laughed. "You? You are no bigger than my [toe|ear]! How could you help me?"
        But {h.he} [was not hungry|liked the brave little {f.kind}], and so {h.he} let {f.him} go.
        {T.A}{t.called} saw it and [shook {t.his} head|said, "What a joke!"].

        Not long after, {h} was walking in the forest, and there {h.he} fell into {trap}. {h} pulled and
        pushed, but {h.he} could not get out. {h.He} roared until the trees shook. {t} heard it, but {t.he}
        [was afraid and ran away|said, "What can I do?"].

        {f} heard it too. {f.He} ran as fast as {f.his} little legs could carry {f.him}. "[Be still|Wait],"
        said {f}, "I am here." And {f.he} began to [bite and pull|work], [a little here and a little
        there|one knot after another], the whole night long. When the sun came up, {h} was free!

        "[You are small|I laughed at you]," said {h}, "but [your courage is great|you have saved my life]."
        "[I told you so|You were kind to me once]," said {f}. And from that day on {f} often sat [on the
        back of {h}|between the ears of {h}] and looked at the world from up there.""",
        morals=("No one is too small to help.", "A kindness is never wasted."),
        asks=(
            ("What did {h} fall into?", "{H} fell into {trap}."),
            ("Who saved {h}?", "{F} saved {h.him}."),
            ("What did {t} do?", "{T} did not help."),
        ),
    ),
    Plot(
        about=("{h.a} who was lost in the forest", "{h.a} and the lights in the forest"),
        titles=("Lost in the Forest", "{H} in the Deep Wood", "The Little Lights"),
        cast={"h": "child young", "f": "wise"},
        pick={"search": ("mushrooms", "berries", "flowers", "nuts")},
        text="""
        <day> {h} went into the forest to look for {search}. {h.His} mother said, "Do not go too far, and be
        home before dark." "Yes, Mother," said {h}.

        [The best {search} grew deep in the wood|{h.He} saw some fine {search}, and behind them there were
        more], and {h} went on and on. {h.His} basket was soon full of {search}. But when {h.he} looked up,
        [the path was gone|all the trees looked the same]. {h} went to the left, and {h.he} went to the
        right. It grew dark. "[I am lost!|Where is the path?]" {h.he} said. <sadly h>.

        Then a voice spoke out of [the branches|the shadows]. "[Who is crying here|Why are you crying]?" It
        was {f.a}{f.called}. "I have lost my way," said {h}. "I want to go home to my mother." "[When you
        are lost, do not run|First sit down and breathe]," said {f}. "Then listen." {h} sat still and
        listened. Far away {h.he} could hear [water|a stream]. "The stream runs to your village," said {f}.
        "Follow it."

        "But it is so dark," said {h}. {f} gave a soft call, and from all sides there came little lights.
        They were fireflies! They flew before {h} along the stream and showed {h.him} where to put {h.his}
        feet. [{h} was not afraid any more.|It was like walking among the stars.]

        At the edge of the forest stood {h.his} mother with a lamp. "{H}!" she cried and took {h.him} in her
        arms. {h} told her of {f} and the lights. The next evening {h} put [a bowl of milk|some of the
        {search}] at the edge of the wood for {f}. In the morning the gift was gone[, and a white feather
        lay in its place|].""",
        morals=(
            "When you are lost, be still and listen.",
            "Do not go farther than you can find your way back.",
        ),
        asks=(
            ("What did {h} look for in the forest?", "{H} looked for {search}."),
            ("Who helped {h}?", "{F} helped {h.him}."),
            ("What were the little lights?", "They were fireflies."),
        ),
    ),
    Plot(
        about=("a dragon who was not wicked", "{h.a} and a dragon", "{h.a} who went to see the dragon"),
        titles=("The Dragon's Secret", "{H} and the Dragon", "The Dragon on the Hill"),
        cast={"h": "child royal_child worker", "d": "dragon"},
        pick={
            "cause": ("a thorn in its foot", "a bad toothache", "a cold in its nose", "a sore throat"),
            "sound": ("roared", "howled", "groaned"),
        },
        text="""
        On the hill above {h.his} home there lived a dragon. Every night it {sound}, and [fire shot up into
        the sky|smoke came out of its cave]. All the people were afraid. "[Somebody must fight the dragon|We
        must drive it away]!" they said. [Ten knights rode up the hill, and ten knights ran down
        again.|Strong men went up with swords, but they all came running back.]

        {h} had no sword. But {h.he} lay awake and listened. "It does not sound angry," {h.he} thought. "It
        sounds as if something hurts." So {h} took [a lamp and some bread|a bag and a warm shawl] and
        climbed the hill.

        The dragon lay in its cave. It was [as big as a church|green from nose to tail], and its eyes were
        like lamps. <afraid h>. "[Have you come to fight me too?|Go away!]" said the dragon. "No," said {h}.
        "I have come to ask why you cry at night." The dragon [was silent for a long time|blinked]. "[No one
        has ever asked me that|Nobody ever asked]," it said. "I have {cause}. It hurts so much that I cannot
        sleep."

        "Let me see," said {h}. {h.He} [held up the lamp|came closer], and with careful hands {h.he} helped
        the dragon. "[This will hurt a little|Hold still]," {h.he} said. And then it was done. The dragon
        [sighed|smiled with all its teeth]. "It does not hurt any more!"

        After that the nights were quiet. In winter the dragon [warmed the houses of the people with its
        breath|lit the fires in every house], and on fine days {h} was seen high up in the clouds, riding on
        its back. "[And we wanted to fight it|We were fools]," said the people.""",
        morals=("Ask first, and fight last.", "Those who roar the loudest may be in pain."),
        asks=(
            ("What was wrong with the dragon?", "The dragon had {cause}."),
            ("Who climbed the hill?", "{H} climbed the hill."),
            ("What did the dragon do in winter?", "It kept the people warm."),
        ),
    ),
    Plot(
        about=(
            "{h.a} who played {o.a}",
            "a sad {g.kind} who could not laugh",
            "{h.a}, {o.a} and a sad {g.kind}",
        ),
        titles=("The Music of {H}", "The {G.kind} Who Could Not Laugh", "{H} and the {O}"),
        cast={"h": "child", "g": "ruler", "f": "animal"},
        things={"o": "instrument"},
        text="""
        In that land there ruled {g.a} who never laughed. [Doctors came, and clowns came|The funniest people
        in the land came], but {g} only looked out of the window. "Whoever can make me laugh," said {g},
        "shall have [a bag of gold|whatever he wishes]."

        {h} had nothing but {o.a} that [{h.his} grandfather had made|{h.he} had found in the attic]. {h.He}
        played it well. <day> {h} set out for the castle. On the way {h.he} met {f.a}{f.called}. {h} played
        a tune, and {f} could not keep still: {f.his} feet began to dance all by themselves! "[I will come
        with you|Play again]!" said {f}, and so they went on together.

        At the gate the guards said, "[What do you want with that old {o}?|Go home, child!]" But {h} played,
        and the guards began to hop from one foot to the other, and they had to let {h.him} in. In the great
        hall sat {g}, [pale and sad|still and grey]. {h} [bowed|said nothing] and began to play.

        {f} danced. {f.He} danced on the table, {f.he} danced on the chairs, and {f.he} [put a flower pot on
        {f.his} head|slipped on the carpet and landed in the soup]! There was a strange sound. Everyone
        turned round. It was {g}. {g.He} was laughing! {g.He} laughed until the [crown fell off|windows
        shook], and then everyone laughed.

        "What is your wish?" asked {g}. {h} [thought for a moment|looked at {f}]. "I wish," {h.he} said,
        "that there should be music in the castle every [week|evening], and that all the [children|people]
        may come." And so it was.""",
        morals=("Music opens doors that gold cannot.", "Laughter is the best medicine."),
        asks=(
            ("What did {h} play?", "{H} played {o.a}."),
            ("Who could not laugh?", "It was {g}."),
            ("Who danced?", "{F} danced."),
            ("What did {h} wish for?", "{H} wished for music in the castle."),
        ),
    ),
    Plot(
        about=("three wishes", "{h.a} who caught a magic fish", "{h.a} and the three wishes"),
        titles=("Three Wishes", "The Magic Fish", "{H} and the Fish"),
        cast={"h": "fisher worker child"},
        pick={
            "silly": (
                "a big sausage",
                "a pancake as big as a wheel",
                "a mountain of sweets",
                "a very tall hat",
            ),
            "colour": ("golden", "silver", "bright red"),
        },
        text="""
        <day> {h} went fishing [on the sea|in the lake]. All day {h.he} caught nothing. At last there was a
        pull at the line, and {h} drew out a {colour} fish.

        "[Let me go|Please put me back]!" said the fish. {h} nearly fell into the water. "A fish that can
        talk!" {h.he} said. "I am [no common fish|the child of the sea king]," said the fish. "If you let me
        go, you shall have three wishes." "[I would have let you go anyway|Swim home, then]," said {h}, and
        {h.he} put the {colour} fish back into the water.

        {h} [ran|walked] home and sat down to think about the three wishes. [A castle?|A chest of gold?] A
        ship? {h.He} thought so long that {h.he} grew hungry. "I wish I had {silly}," said {h} without
        thinking. Bang! There on the table was {silly}. "[Oh no!|How stupid of me!]" <cried> {h}. "Now I
        have lost a wish because of {silly}! I wish it would hang from my nose!" And at once it hung from
        {h.his} nose.

        {h} pulled, but it would not come off. [{h.He} looked in the mirror and groaned.|The neighbours came
        and laughed until they cried.] One wish was left. "I could wish for gold," thought {h}, "but [who
        wants to be rich with such a nose|what good is gold to me now]?" So {h.he} said, "I wish that
        everything should be as it was before." And so it was.

        {h} began to laugh. "[I have learned something|Now I am wiser than before]," {h.he} said. "[I had
        all I needed in the first place|A nose without anything on it is a fine thing]." <next> {h.he} went
        fishing again, and [the {colour} fish jumped out of the water and winked|{h.his} nets were full
        every day from then on].""",
        morals=("Think before you wish.", "Be careful what you say when you are cross."),
        asks=(
            ("What did {h} catch?", "{H} caught a {colour} fish."),
            ("What was the first wish?", "The first wish was for {silly}."),
            ("What was the last wish?", "{H} wished that everything should be as it was before."),
        ),
    ),
    Plot(
        about=("{h.a} who did not want to work", "a lazy {h.kind} and a busy {f.kind}"),
        titles=("The Lazy {H.kind}", "Summer and Winter", "{H} and {F}"),
        cast={"h": "animal", "f": "small"},
        text="""
        All summer long {h} [lay in the sun|sang and danced]. "[Life is good,|Why should I work?]" said {h}.
        {F.A}{f.called} lived near by, and {f.he} worked all day. {f.He} carried [grain|nuts and seeds] into
        {f.his} house, and {f.he} [stopped up every hole|piled up wood].

        "[Come and play, {f.call}!|Why do you work so hard, {f.call}?]" <cried> {h}. "The sun is shining!"
        "Winter will come," said {f}. "You should gather food too." "[Winter is far away|I will do it
        tomorrow]," said {h}, and {h.he} turned over and slept.

        Autumn came, and the leaves fell. "Tomorrow," said {h}. Then, one night, the snow came. [Everything
        was white and cold.|The wind blew through the cracks.] {h} looked for food, but there was none.
        {h.His} stomach was empty, and {h.his} feet were like ice. <sadly h>. Through the snow {h.he} went
        to the house of {f}.

        "[I am cold and hungry|May I come in], {f}," said {h}. "You told me, and I did not listen." {f}
        [looked at {h} for a while|opened the door]. "You laughed at me in the summer," said {f}, "but I
        will not let you freeze. Come in. There is enough for two[, if we are careful|]." {h} was ashamed.
        "How can I thank you?" "You can [sing for me|tell me stories]," said {f}, "and in the spring you can
        help me."

        So all winter {h} [sang|told stories] by the fire, and the time went quickly. And when spring came,
        who was the first to be up and at work? It was {h}! [{H} worked by the side of {f}, and they sang
        together.|"Today," said {h}, "not tomorrow."]""",
        morals=(
            "Do today what must be done, and do not wait for tomorrow.",
            "Work in summer, and you will be warm in winter.",
        ),
        asks=(
            ("What did {h} do in summer?", "{H} did not work at all."),
            ("Who gave food to {h}?", "{F} took {h.him} in."),
            ("What did {h} do in spring?", "{H} was the first to work."),
        ),
    ),
    Plot(
        about=("a dry summer", "{h.a} who found water", "animals who dug a well"),
        titles=("The Well", "The Dry Summer", "{H} Finds Water"),
        cast={"h": "animal", "f": "animal", "g": "animal big", "t": "elder"},
        text="""
        It had not rained for a hundred days. The stream was dry, and the grass was [brown|yellow]. "[What
        shall we drink|We must go away from here]," said the animals. {F.both} [sat in the shade and
        sighed|had nothing left to drink]. {G.both} [looked at the sky all day|was too tired to move].

        {h} went to {t.a}{t.called} and asked, "[Where does the water go|Is there no water left in the
        world]?" "[Deep down|Under the earth] there is always water," said {t}. "But it takes many days to
        dig so far." "Then we had better begin," said {h}.

        {h} began to dig [under the old willow|in the middle of the meadow]. {f} laughed. "[You will find
        nothing but dust|What a foolish thing to do in this heat]!" said {f}. {h} said nothing and dug. The
        second day {g} came. "You are too small to do it alone," said {g}. "[Let me help|I will carry the
        earth away]." They dug together. On the third day {f} could not look on any longer. "[If you do not
        rest, I cannot rest either|Move over]," said {f}, and {f.he} dug too.

        They dug until they could not see over the edge. "[Still nothing|It is no use]," said {f}. "A little
        more," said {h}. And then the earth under {h.his} feet was wet. A drop came, and another, and then
        clear cold water came up! "Water! Water!" they <cried>. They drank, and they [splashed each
        other|danced in the mud].

        All the animals came, even from far away, and there was enough for everyone. And they called it the
        well of {h}. [But {h} said, "It is our well. We all dug it."|]""",
        morals=("Begin, and others will follow.", "The water is sweetest for those who dig."),
        asks=(
            ("Why did {h} dig?", "There was no rain, and they needed water."),
            ("Who helped {h} first?", "{G} came first to help."),
            ("What did {f} say?", "{F} said that they would find nothing."),
        ),
    ),
    Plot(
        about=("{h.a} who found a map", "a treasure map", "{h.a} and a hidden treasure"),
        titles=("The Old Map", "The Treasure", "{H} Finds a Treasure"),
        cast={"h": "child young", "f": "young"},
        pick={
            "where": (
                "under the old oak",
                "in a cave by the waterfall",
                "behind the mill",
                "on the little island",
            ),
            "prize": (
                "a bag of seeds and a letter",
                "a box of old books",
                "a pair of wooden flutes",
                "a bundle of old letters and a lantern",
            ),
        },
        text="""
        <day> {h} was cleaning the attic when an old map fell out of a book. There was a red cross on it!
        {h} ran to {f.both}. "Look! It is a treasure map," said {h}. "[The treasure lies|The cross is]
        {where}. Will you come with me?" "[Of course|Yes]!" said {f}.

        They took a [spade and a rope|lamp and some bread] and set out. The map said: go to the crossroads.
        So they went to the crossroads. The map said: [turn left at the white stone|follow the stream]. So
        they did. "[What will you do with the gold|What will you buy], {h.call}?" asked {f}. "[I will buy a
        ship|I will buy a horse]," said {h}. "And you?" "[I will eat cake every day|I will buy a house for
        my mother]," said {f}.

        At last they came to the place {where}. They dug and dug. [The sun was hot|It was hard work], and
        {f} said, "Perhaps there is nothing here." Clonk! The spade hit something. It was a wooden chest!
        They lifted the lid. There was no gold in it. There was only {prize}.

        {h} and {f} looked at each other. "[Is that all|No gold]?" said {f}. But then {h} [took it out
        carefully|sat down and looked closely]. "Somebody loved this very much," {h.he} said, "[and hid it
        for us to find|and wanted it to be found]." They carried {prize} home. All [that winter|that year]
        they had more joy of it than of anything they ever had. [And the walk had been a fine adventure,
        too.|"Gold would be spent by now," said {f}.]

        Then they [wrote a letter of their own|put their best marbles into the chest] and hid the chest
        again {where}. And {h} put the map back into the old book for someone else to find.""",
        morals=("Not all treasure is gold.", "The best part of a treasure is the search with a friend."),
        asks=(
            ("What did {h} find in the attic?", "{H} found an old map."),
            ("Where was the treasure?", "The treasure was {where}."),
            ("What was in the chest?", "There was {prize}."),
        ),
    ),
    Plot(
        about=("{h.a} whose {o} was stuck in a tree", "friends who made a tower"),
        titles=("The {O} in the Tree", "Up, Up, Up!", "The Tower of Friends"),
        cast={"h": "young", "a": "animal big", "b": "animal", "c": "small"},
        things={"o": "toy"},
        text="""
        <day> {h} was playing with {h.his} {o.full}. A strong wind came and carried it up, up, up, and it
        stuck in the top of a tall tree. "[My {o}|Come back, {o}]!" cried {h}.

        {h} jumped, but the tree was too high. {h.He} shook the tree, but the {o} did not fall. [{h.He}
        threw a stick, and the stick stuck too.|] <sadly h>. Then {a.a}{a.called} came along. "What is the
        matter?" asked {a}. "My {o} is up there," said {h}. "I am tall," said {a}, and {a.he} stretched [and
        stretched|]. But {a.he} could not reach it.

        {B.A}{b.called} came along. "I can stand on your back, {a.call}," said {b}. So {b} stood on the back
        of {a} and stretched. But {b.he} could not reach it. "[Only a little more|Nearly]!" said {h}. {h}
        climbed up and stood on the back of {b}. [They swayed to and fro.|"Hold still," said {a}.] But {h}
        could not reach it either.

        Then {c.a}{c.called} came along. "Can I help?" asked {c}. "[You are so small|You]?" said {b}. "But
        small is just what we need," said {h}. "[We cannot carry any more that is heavy|Come up]." So {c}
        climbed up: over {a}, over {b}, and over {h}. {c.He} stretched out {c.his} [little|tiny] arm, and
        caught the {o}!

        "Hurrah!" they all <cried>. And then the tower [fell over|began to shake and fell], and they all
        landed in the soft grass[, with {c} on top|]. How they laughed! {h} thanked {a} and {b} and {c}, and
        they played with the {o} all afternoon. [But they stayed away from tall trees.|]""",
        morals=(
            "Together we can reach what none of us can reach alone.",
            "Sometimes the smallest makes the difference.",
        ),
        asks=(
            ("Where was the {o}?", "It was stuck in a tall tree."),
            ("Who caught the {o}?", "{C} caught the {o}."),
            ("Who was at the bottom of the tower?", "It was {a}."),
        ),
    ),
    Plot(
        about=("a light in the lighthouse", "{h.a} who lit the lamp", "{h.a} and a ship in the storm"),
        titles=("The Lamp in the Tower", "The Night of the Storm", "{H} Keeps the Light"),
        cast={"h": "child", "g": "elder", "f": "animal"},
        text="""
        On a rock by the sea stood a lighthouse, and there lived {g.a}{g.called} who took care of the lamp.
        {h} often came to visit. "[Why must the lamp burn every night|What is the lamp for]?" asked {h}.
        "[So that the ships can find their way|Without it the ships would hit the rocks]," said {g}.

        <night> a storm blew up. {h} looked out of the window. The lighthouse was dark! "[Something has
        happened to {g}|The lamp is out]!" said {h}. {h.He} took {h.his} coat and ran out. {F}, {f.a} [that
        belonged to the house|that followed {h.him} everywhere], ran along. The wind pushed them back, and
        the waves [washed over the path|were as high as houses]. But {h} held on to the rope and went on.

        In the lighthouse {g} lay at the foot of the stairs. "My leg," {g.he} groaned. "I cannot climb. And
        out there is a ship! {H}, you must light the lamp." {h} looked up. There were [a hundred|two
        hundred] steps. <afraid h>. "{f} will go with you," said {g}. So up they went, round and round, in
        the dark. [{f} went first.|{h} kept one hand on the back of {f}.]

        At the top {h} found the matches. The first one went out. The second one went out. There was only
        one left. {h} [held it in both hands|turned {h.his} back to the wind], and the lamp caught fire. The
        light swept over the sea. And there was the ship, quite near the rocks! It turned, slowly, slowly,
        and it was saved.

        In the morning the captain came. "Who lit the lamp?" he asked. "{H} did," said {g}, "with {f}." The
        captain [took off his hat|shook hands with {h}, and he shook the paw of {f} too]. "[Forty men will
        see their homes again because of you|We owe you our lives]," he said. {h} turned red. "[I only lit a
        lamp|{F} helped me]," {h.he} said.""",
        morals=("A small light can save a great ship.", "Do what must be done, even with shaking knees."),
        asks=(
            ("Why was the lamp dark?", "{G} had hurt a leg and could not climb the stairs."),
            ("Who lit the lamp?", "{H} lit the lamp."),
            ("Who went up with {h}?", "{F} went with {h}."),
        ),
    ),
    Plot(
        about=("{h.a} who tricked {f.a}", "a clever {h.kind} and a hungry {f.kind}"),
        titles=("The Clever {H.kind}", "How {H} Tricked {F}", "{H} and the {F.kind}"),
        cast={"h": "small", "f": "hunter"},
        pick={"trick": ("honey", "cheese", "butter")},
        text="""
        <day> {h} was [on the way to market|looking for food] when {f.a}{f.called} jumped out of the bushes.
        "[Now I have you|I am hungry]," said {f}, "and I shall eat you up!" <afraid h>, but {h.he} did not
        show it.

        "[You may eat me if you like|Very well]," said {h}. "But I am so small and thin. I would hardly make
        one bite. [I know something better|It would be a pity], for I am on my way to a place where there is
        a great pot of {trick}." "{Trick}?" said {f}, and {f.his} mouth began to water. "Where is it?" "I
        will show you," said {h}. "It is down there."

        {h} led {f} to [an old well|the edge of the pond]. The moon was shining, round and yellow, in the
        water. "Do you see it?" asked {h}. "There it lies, the big yellow pot of {trick}." {f} leaned over
        and looked. "[I see it|It is huge]! But how do I get it?" "[You must jump|Take a good leap]," said
        {h}, "before someone else comes."

        {f} jumped. Splash! The water was as cold as ice. There was no {trick}, and the moon broke into a
        thousand pieces. "[Help|You have tricked me]!" <cried> {f}, and {f.he} [swam|climbed] and coughed
        and shook with cold. "[You wanted to eat me|Next time, catch your own supper]," said {h} from far
        away, "and I wanted to live."

        {f} went home wet and hungry. {h} [ran home and locked the door|told the story to all {h.his}
        friends, and they laughed until their sides hurt]. And whenever {f} saw the moon in the water,
        {f.he} turned round and walked away.""",
        morals=("A clever head is stronger than sharp teeth.", "The greedy are easily fooled."),
        asks=(
            ("Who wanted to eat {h}?", "{F} wanted to eat {h.him}."),
            ("What did {f} really see in the water?", "It was only the moon."),
            ("What did {h} say was in the water?", "{H} said it was a pot of {trick}."),
        ),
    ),
    Plot(
        about=("{h.a} who boasted", "{h.a} who told tall tales", "{h.a} who cried wolf"),
        titles=("The Boaster", "{H} Tells Tales", "The {H.kind} Who Cried Wolf"),
        cast={"h": "young", "f": "elder", "g": "animal"},
        text="""
        {h} watched over the [sheep|geese] of the village. It was quiet work, and {h} was bored. <day>
        {h.he} thought, "I will have some fun." And {h.he} ran and cried, "A wolf! A wolf!"

        All the people came running with sticks and forks. {G.both} came first of all. But there was no
        wolf. {h} [laughed|rolled in the grass and laughed]. "How funny you look!" {h.he} said. The people
        [were angry|shook their heads] and went home. Some days later {h} did it again. "A wolf! A wolf!"
        Again they all came running, and again there was no wolf.

        "[One day nobody will believe you|Be careful]," said {f.a}{f.called}. "A lie is like a broken pot:
        it holds nothing." But {h} only laughed.

        Then, one evening, a real wolf came out of the wood. It was grey, and its eyes were yellow. "A wolf!
        A wolf!" cried {h}, as loud as {h.he} could. The people heard it. "[It is only {h} again|{H} is
        lying again]," they said, and they [went on with their supper|did not get up]. {h} was all alone.
        <afraid h>.

        But {g} [had heard something in the voice of {h}|thought, "This time it sounds different"]. {g} came
        running, [with a burning stick|with a big bell], and made such a noise that the wolf turned round
        and fled. {h} [fell on {h.his} knees|began to cry]. "You came," {h.he} said, "and I lied to you
        twice." "[I did not want to be wrong the one time it mattered|A friend comes a third time]," said
        {g}. "But do not try it a fourth time." And {h} never did.""",
        morals=(
            "Nobody believes a liar, even when he tells the truth.",
            "Trust is easily broken and slowly mended.",
        ),
        asks=(
            ("What did {h} cry?", '{H} cried, "A wolf! A wolf!"'),
            ("Who came at last?", "{G} came and drove the wolf away."),
            ("Why did the people not come?", "{H} had lied to them twice."),
        ),
    ),
    Plot(
        about=("{h.a} who could not fly", "a little {h.kind} who was afraid to fly"),
        titles=("The First Flight", "{H} Learns to Fly", "Fly, {h.call}!"),
        cast={"h": "bird", "f": "bird", "g": "young"},
        text="""
        It was [spring|early summer], and all the young birds had learned to fly. Only {h} still sat in the
        nest. "[The ground is so far away,|What if I fall?]" said {h}. {h.His} friend {f.both} flew round
        and round the tree. "[Come on|Jump], {h.call}! It is easy!" But {h} held on to the branch and shut
        {h.his} eyes.

        Every day {h.his} mother brought {h.him} food. "[You cannot stay in the nest for ever|You have good
        wings]," she said. "Tomorrow," said {h}. But when tomorrow came, {h} said "tomorrow" again.

        <day> {h} looked down and saw {g.both} [who had often talked with {h.him}|who lived at the foot of
        the tree]. {g} was [picking flowers|playing in the grass]. And behind {g} in the grass there was a
        snake! It came nearer and nearer. "{G}! Look out!" called {h}. But the wind was loud, and {g} did
        not hear.

        {h} did not think about the ground any more. {h.He} spread {h.his} wings and jumped. Down {h.he}
        went, faster and faster. Then the wind was under {h.his} wings. {h} flew right at the snake and
        [beat it with {h.his} wings|screamed as loud as {h.he} could]. The snake was so surprised that it
        slipped away.

        "You saved me!" said {g}. "And you flew, {h.call}!" {h} looked back at the nest, high up in the
        tree. "[I flew|So I did]!" {h.he} said. And then {h.he} flew up again, [over the tree and over the
        hill|round and round in the blue sky], and {h.his} mother watched with shining eyes.""",
        morals=("We find our wings when someone needs us.", "Courage comes when we think of others."),
        asks=(
            ("Why did {h} not fly?", "{H} was afraid to fall."),
            ("Whom did {h} save?", "{H} saved {g}."),
            ("What was in the grass?", "There was a snake in the grass."),
        ),
    ),
    Plot(
        about=("a wise judge", "two neighbours and {o.a}", "{h.a} who judged wisely"),
        titles=("The Wise {H.kind}", "Who Owns the {O}?", "The Judgement"),
        cast={"h": "ruler", "a": "worker", "b": "worker"},
        things={"o": "treasure"},
        text="""
        People came from far away to ask {h} for advice. <day> two neighbours came before {h}. One was
        {a.a}, and the other was {b.a}. Between them they carried {o.a}.

        "[This {o} is mine|I own this {o}]," said the {a.kind}. "[My father gave it to me|I bought it with
        my last coin]." "That is a lie!" said the {b.kind}. "It is mine. [I lost it last week|I made it with
        my own hands]." They shouted so loud that [the cat ran out of the hall|the windows shook].

        {h} listened and said nothing. Then {h.he} [raised a hand|stood up]. "I cannot tell who is right,"
        said {h}. "So [we will break the {o} in two, and each shall have a half|I will throw the {o} into
        the fire, and there will be peace]."

        "[Good|Very well]!" said the {a.kind}. "If I cannot have it, nobody shall." But the {b.kind} turned
        white. "No! Please do not [break it|hurt it]," said the {b.kind}. "[Let my neighbour have it|I would
        rather give it away], so long as it stays whole."

        {h} smiled. "Now I know," said {h}. "Give the {o} to the {b.kind}. [Only the one who loves a thing
        cares more for it than for winning.|The true owner would not see it harmed.]" The {a.kind} [hung
        {a.his} head|turned red]. "It is true," {a.he} said. "I wanted it because it was so fine." "Then
        [work for a week in your neighbour's house|say that you are sorry]," said {h}. And [they went home
        as friends|they went home together, and there was peace].""",
        morals=("Love does not want to break what it cannot have.", "Wisdom listens before it speaks."),
        asks=(
            ("What did they quarrel about?", "They quarrelled about {o.a}."),
            ("Who was the true owner?", "It was the {b.kind}."),
            ("How did {h} know?", "Only the true owner did not want the {o} to be harmed."),
        ),
    ),
    Plot(
        about=("{h.a} who painted the town", "a grey town and {h.a}", "{h.a} and a pot of paint"),
        titles=("The Grey Town", "{H} and the Colours", "The Painted Door"),
        cast={"h": "child", "g": "elder ruler", "f": "animal"},
        pick={"colour": ("red", "blue", "yellow", "green", "orange")},
        text="""
        In {h.his} town everything was grey. The houses were grey, the coats were grey, and the people did
        not smile. {g.A}{g.called} had [ordered it so|said that colours were too loud].

        <day> {h} found a pot of {colour} paint [in the cellar|under the stairs]. {h.He} dipped in one
        finger and painted a small {colour} flower on the wall. {F.both} sniffed at it and wagged. The
        next morning a woman stopped in front of the flower. She looked at it for a long time, and then she
        [smiled|began to hum a song].

        {h} saw it. That night {h.he} painted the door of {h.his} own house {colour}. [In the morning the
        neighbours came to look.|In the morning there was a crowd in the street.] "[Have you any paint
        left|May I paint my door too]?" asked the baker. Soon there was a {colour} door, and a {colour}
        bench, and a {colour} gate.

        Then {g} came. "[Who did this|What is this]?" asked {g} in a hard voice. Everyone was silent. {h}
        stepped forward. <afraid h>. "I did," said {h}. {f} stood close beside {h.him}. "It was so grey, and
        nobody smiled." {g} looked at the {colour} door, and at the {colour} bench, and at the people.
        [{g.His} face grew soft.|Slowly {g.his} face changed.] "When I was a child," said {g}, "I had a
        {colour} [kite|ball]. I lost it, and I was so sad that I did not want to see {colour} any more. [But
        I see that I have missed it|I had forgotten how beautiful it is]."

        "There is a little paint left," said {h}, and {h.he} held out the brush. And {g} painted a {colour}
        kite on the wall of {g.his} own house. [After that the town was not grey any more.|Today every house
        in that town has its own colour.]""",
        morals=("One small flower can change a street.", "Joy wants to be seen."),
        asks=(
            ("What colour was the paint?", "The paint was {colour}."),
            ("What did {h} paint first?", "{H} painted a small flower."),
            ("Why was the town grey?", "{G} did not want to see colours."),
        ),
    ),
)
