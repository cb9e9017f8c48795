//! What a reader of a receipt has to know beside its numbers: what was decided without looking at examples, and what the
//! numbers do not say.

use shrink::Pass;
use shrink::prune::zeros::Rule;

use crate::answer::Task;
use crate::shrink::Plan;

/// How a result came about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course<'a> {
    /// What was done.
    pub plan: &'a Plan,
    /// True when there were examples.
    pub data: bool,
    /// What the answers were judged by.
    pub task: Task,
    /// True when the time that the search was given was over before it was.
    pub out_of_time: bool,
}

/// One sentence for each caveat.
pub(crate) fn caveats(course: &Course) -> Vec<String> {
    let Course { plan, data, task, out_of_time } = *course;
    let mut found: Vec<String> = Vec::new();
    let mut say = |text: &str| found.push(text.to_string());
    if !data {
        say(
            "There were no data: what is lost, what changed in the answers and the time of a run were not measured.",
        );
    } else if task == Task::Agree {
        say(
            "No right answers were used: the metric says how often both models answer alike, not how often they are \
             right.",
        );
    }
    for pass in &plan.passes {
        match pass {
            Pass::Zeros(_) if !data => say(
                "Zeros went to the smallest elements, by size alone, and what stays was not refit: there were no data to \
                 see what they do.",
            ),
            Pass::Zeros(zeros) if zeros.rule == Rule::Magnitude => {
                say("Zeros went to the smallest elements, by size alone, as was asked for.");
            }
            Pass::Rank { .. } if !data => {
                say("Ranks were cut by the weights alone: there were no data to see what they do.");
            }
            _ => {}
        }
    }
    if !data && plan.steps.iter().any(|s| s.choice.bits().is_some()) {
        say(
            "Bits were shared out, and codes chosen, by the error of the weights alone: there were no data to see what \
             they do.",
        );
    }
    if out_of_time {
        say("The time that was given was over before the search was: some harms were guessed or left out.");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use shrink::prune::zeros::Zeros;

    fn plan(rule: Rule) -> Plan {
        let step = "[[steps]]\nnode = 'n'\nweight = 'w'\nchoice = 'w4'\n";
        let mut plan = Plan::read(step).unwrap();
        plan.passes.push(Pass::Zeros(Zeros { rule, refit: true, weights: Vec::new() }));
        plan
    }

    #[test]
    fn what_was_done_blindly_is_said() {
        let of = |rule, data, task, out_of_time| {
            caveats(&Course { plan: &plan(rule), data, task, out_of_time }).join("\n")
        };
        let blind = of(Rule::Best, false, Task::Agree, false);
        for words in ["no data", "by size alone", "not refit", "codes chosen"] {
            assert!(blind.contains(words), "{words}: {blind}");
        }
        assert!(!blind.contains("right answers"), "nothing was judged at all: {blind}");
        assert_eq!(of(Rule::Best, true, Task::Classify, false), "");
        assert!(of(Rule::Magnitude, true, Task::Classify, false).contains("as was asked for"));
        assert!(of(Rule::Best, true, Task::Agree, false).contains("answer alike"));
        assert!(of(Rule::Best, true, Task::Classify, true).contains("time"));
    }
}
