"""Turns of phrase that many plots share; ``$`` stands for the role that the macro is used with."""

from __future__ import annotations

MACROS: dict[str, str] = {
    "day": "[one day|one morning|one fine morning|one sunny day|early one morning|one afternoon|"
    "one [warm|bright|cold|windy] [day|morning]|one day in [spring|summer|autumn]]",
    "then": "[then|after that|soon|a little later|at last|in a little while]",
    "next": "[the next day|the next morning|early the next morning|when the sun came up|on the following day]",
    "night": "[that night|that evening|when night came|when the stars came out|when it grew dark]",
    "glad": "{$} was [so |very |]happy [that {$.he} [danced|jumped|laughed aloud|sang]|]|{$} was [very|so] glad"
    "|{$} smiled|{$} [laughed|smiled] with joy|{$.his} heart was [light|full of joy]",
    "gladly": "[<glad $>]",
    "sadly": "[{$} was [very |so |]sad|{$} [began to cry|hung {$.his} head|sat down and cried]|"
    "{$.his} heart was heavy|tears ran down {$.his} [face|cheeks]]",
    "afraid": "[{$} was [very |]afraid|{$} was frightened|{$} began to shake [with fear|]|"
    "{$.his} heart beat [fast|hard]]",
    "thanks": '["thank you, {$.call}," | "thank you," | "oh, thank you!" | "thank you with all my heart," | '
    '"how can I ever thank you?" ]',
    "went": "[went|walked|set off|hurried|ran]",
    "said": "[said|answered|replied]",
    "asked": "[asked|said]",
    "cried": "[cried|called|shouted]",
    "thought": "[{$} thought [for a long time|about it|hard|for a while]|{$} sat down to think|"
    "{$} scratched {$.his} head and thought]",
    "verysoon": "[very soon|before long|in no time|soon]",
    "weather": "[the sun was shining|the sky was blue|the birds were singing|a soft wind was blowing|"
    "there was dew on the grass|white clouds sailed over the hills]",
    "nobody": "[but no one had seen it|but nobody knew where it was|but they all shook their heads]",
    "lookup": "[{$} looked up|{$} lifted {$.his} head|{$} turned around]",
    "tired": "[{$} was [very |so |]tired|{$.his} legs were [very |]tired|{$} could hardly [walk|stand] any more]",
    "end": "[and they [all |]lived happily [ever after|to the end of their days]|and from that day on all was well|"
    "and that was the end of the matter|and they were all happy]",
    "friends": "[from that day on|from that day|ever after|and so] {$} and {f} were [the best of friends|"
    "good friends|always together|friends for life]",
    "slept": "[that night|that evening] {$} [slept well|slept soundly|went to bed with a smile|fell asleep at once]",
    "home": "[{$} went home|{$} ran home|{$} walked home|{$} made {$.his} way home]",
}

OPENINGS: dict[str, tuple[str, ...]] = {
    "named": (
        "[once upon a time|long ago|once|a long time ago] there [was|lived] {h.a} {h.called}. "
        "{h.He} lived in {h.home}.",
        "[once upon a time|once] there was {h.a} {h.called}, who lived in {h.home}.",
        "{h} was {h.a} [who lived in {h.home}|. {h.His} home was {h.home}].",
        "in {h.home} there lived {h.a} {h.called}.",
        "[there was once|there once was|once there was] {h.a}. {h.His} name was {h}, and {h.he} lived in {h.home}.",
        "{h} lived in {h.home}. {h.He} was {h.a} [and everybody liked {h.him}|, and {h.he} was seldom idle|].",
        "{h} was {h.a}.",
    ),
    "unnamed": (
        "[once upon a time|long ago|once|a long time ago] there [was|lived] {h.a}. [{h.He}|the {h.kind}] lived in "
        "{h.home}.",
        "[once upon a time|once] there was {h.a} who lived in {h.home}.",
        "in {h.home} there [once|] lived {h.a}.",
        "there was once {h.a} [who had {h.his} home in|, and {h.his} home was] {h.home}.",
    ),
}
