#!/bin/sh
# The smallest reward program for --reward "cmd:sh dev/reward_example.sh": one text per line in, one number per line
# out, flushed after each. Here: kind words minus unkind ones.
while IFS= read -r text; do
    score=0
    for word in $text; do
        case $word in
            great*|good*|brilliant*|remarkable*|beautiful*|wonderful*|perfect*) score=$((score + 1));;
            bad*|dull*|dreadful*|mess*|never*|lifeless*|boring*) score=$((score - 1));;
        esac
    done
    echo "$score"
done
