//! Decision trees of ai.onnx.ml: `TreeEnsemble`, `TreeEnsembleClassifier`, `TreeEnsembleRegressor`.
//! <https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html>

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::gather::gather;
use crate::ops::scores::{Post, best, infer, labels, logistic, rows};
use crate::{Attr, Attrs, DType, Error, Fact, Op, Result, Tensor};

/// Where a branch leads.
#[derive(Clone, Copy, Debug)]
enum Next {
    Branch(usize),
    Leaf(usize),
}

/// What a feature must be for the first way.
#[derive(Clone, Debug)]
enum Test {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
    Above(f64),
    Is(f64),
    IsNot(f64),
    Among(Vec<f64>),
}

impl Test {
    fn named(name: &str, value: f64) -> Result<Test> {
        Ok(match name {
            "BRANCH_LEQ" => Test::AtMost(value),
            "BRANCH_LT" => Test::Below(value),
            "BRANCH_GTE" => Test::AtLeast(value),
            "BRANCH_GT" => Test::Above(value),
            "BRANCH_EQ" => Test::Is(value),
            "BRANCH_NEQ" => Test::IsNot(value),
            other => return Err(Error::unsupported(format!("a node of mode {other:?}"))),
        })
    }

    fn holds(&self, x: f64) -> bool {
        match self {
            Test::AtMost(v) => x <= *v,
            Test::Below(v) => x < *v,
            Test::AtLeast(v) => x >= *v,
            Test::Above(v) => x > *v,
            Test::Is(v) => x == *v,
            Test::IsNot(v) => x != *v,
            Test::Among(all) => all.contains(&x),
        }
    }
}

#[derive(Clone, Debug)]
struct Branch {
    feature: usize,
    test: Test,
    /// A missing feature (NaN) takes the first way.
    missing: bool,
    /// If the test holds, if not.
    ways: [Next; 2],
}

/// How the numbers of all trees become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Total {
    Average,
    Sum,
    Least,
    Most,
}

/// All trees.
#[derive(Debug)]
struct Forest {
    branches: Vec<Branch>,
    roots: Vec<Next>,
    /// What each leaf adds: (target, number).
    leaves: Vec<Vec<(usize, f64)>>,
    targets: usize,
    total: Total,
    base: Vec<f64>,
}

impl Forest {
    /// The leaf that an example comes to in a tree.
    fn leaf(&self, root: Next, x: &[f64]) -> Result<usize> {
        let mut at = root;
        // A way is never longer than there are branches, unless it goes round in circles.
        for _ in 0..=self.branches.len() {
            let branch = match at {
                Next::Leaf(leaf) => return Ok(leaf),
                Next::Branch(i) => &self.branches[i],
            };
            let x = *x.get(branch.feature).ok_or_else(|| {
                Error::invalid(format!("a tree asks for feature {} of {}", branch.feature, x.len()))
            })?;
            let first = branch.test.holds(x) || x.is_nan() && branch.missing;
            at = branch.ways[usize::from(!first)];
        }
        Err(Error::invalid("a tree goes round in circles"))
    }

    /// The scores of an example, and which of them some leaf spoke of.
    fn scores(&self, x: &[f64], scores: &mut [f64], spoken: &mut [bool]) -> Result<()> {
        spoken.fill(false);
        scores.fill(0.0);
        for &root in &self.roots {
            for &(target, weight) in &self.leaves[self.leaf(root, x)?] {
                let score = &mut scores[target];
                *score = match self.total {
                    Total::Least if spoken[target] => score.min(weight),
                    Total::Most if spoken[target] => score.max(weight),
                    Total::Least | Total::Most => weight,
                    Total::Sum | Total::Average => *score + weight,
                };
                spoken[target] = true;
            }
        }
        for (i, score) in scores.iter_mut().enumerate() {
            if self.total == Total::Average {
                *score /= self.roots.len().max(1) as f64;
            }
            *score += self.base.get(i).copied().unwrap_or(0.0);
        }
        Ok(())
    }
}

/// A number for each target of trees, or a class.
#[derive(Debug)]
pub struct Trees {
    line: usize,
    attrs: Attrs,
    forest: Forest,
    post: Post,
    labels: Option<Tensor>,
    /// A classifier of two classes all of whose leaves speak of one: whether no leaf has a number below 0.
    one_sided: Option<bool>,
}

fn lengths(what: &str, lengths: &[usize], want: usize) -> Result<()> {
    match lengths.iter().all(|&n| n == want) {
        true => Ok(()),
        false => Err(Error::invalid(format!("{what} of {want} entries have lists of other lengths"))),
    }
}

/// The numbers of `name` (f32) or `name_as_tensor` (f64).
fn numbers(attrs: &Attrs, name: &str) -> Result<Vec<f64>> {
    if let Some(tensor) = attrs.opt_tensor(&format!("{name}_as_tensor"))?.filter(|t| !t.is_empty()) {
        return wide(tensor);
    }
    Ok(attrs.opt_floats(name)?.unwrap_or_default().into_iter().map(f64::from).collect())
}

fn wide(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(cast(tensor.clone().aligned(), DType::F64, true)?.values::<f64>()?.into_owned())
}

fn index(n: i64, what: &str) -> Result<usize> {
    usize::try_from(n).map_err(|_| Error::invalid(format!("{what} {n} is negative")))
}

/// The form until version 3: each node has a tree and a number, leaves are nodes, too. `stem` begins the names of what
/// leaves add.
fn read_nodes(attrs: &Attrs, stem: &str, targets: usize) -> Result<Forest> {
    let ints = |name: &str| attrs.ints_or(name, &[]);
    let (trees, ids) = (ints("nodes_treeids")?, ints("nodes_nodeids")?);
    let (yes, no) = (ints("nodes_truenodeids")?, ints("nodes_falsenodeids")?);
    let (features, values) = (ints("nodes_featureids")?, numbers(attrs, "nodes_values")?);
    let modes = attrs.opt_texts("nodes_modes")?.unwrap_or_default();
    let missing = ints("nodes_missing_value_tracks_true")?;
    let n = ids.len();
    lengths("nodes", &[trees.len(), yes.len(), no.len(), features.len(), values.len(), modes.len()], n)?;
    let (mut places, mut branches, mut leaves) = (HashMap::new(), 0, 0);
    let mut roots = Vec::new();
    for i in 0..n {
        let count = if modes[i] == "LEAF" { &mut leaves } else { &mut branches };
        let next = if modes[i] == "LEAF" { Next::Leaf(*count) } else { Next::Branch(*count) };
        *count += 1;
        if places.insert((trees[i], ids[i]), next).is_some() {
            return Err(Error::invalid(format!("tree {} has two nodes {}", trees[i], ids[i])));
        }
        // The first node of a tree is its root.
        if i == 0 || trees[i] != trees[i - 1] {
            roots.push(next);
        }
    }
    let find = |tree: i64, id: i64| -> Result<Next> {
        let found = places.get(&(tree, id)).copied();
        found.ok_or_else(|| Error::invalid(format!("tree {tree} has no node {id}")))
    };
    let mut forest = Forest {
        branches: Vec::with_capacity(branches),
        roots,
        leaves: vec![Vec::new(); leaves],
        targets,
        total: Total::Sum,
        base: numbers(attrs, "base_values")?,
    };
    for i in (0..n).filter(|&i| modes[i] != "LEAF") {
        forest.branches.push(Branch {
            feature: index(features[i], "feature")?,
            test: Test::named(&modes[i], values[i])?,
            missing: missing.get(i) == Some(&1),
            ways: [find(trees[i], yes[i])?, find(trees[i], no[i])?],
        });
    }
    let part = |name: &str| format!("{stem}_{name}");
    let (at, of) = (ints(&part("treeids"))?, ints(&part("nodeids"))?);
    let (to, weights) = (ints(&part("ids"))?, numbers(attrs, &part("weights"))?);
    lengths("leaves", &[at.len(), of.len(), weights.len()], to.len())?;
    for i in 0..to.len() {
        let target = index(to[i], "target")?;
        if target >= targets {
            return Err(Error::invalid(format!("a leaf speaks of target {target} of {targets}")));
        }
        // Numbers at nodes that are no leaves count for nothing.
        if let Next::Leaf(leaf) = find(at[i], of[i])? {
            forest.leaves[leaf].push((target, weights[i]));
        }
    }
    Ok(forest)
}

fn read_regressor(attrs: &Attrs) -> Result<Arc<dyn Op>> {
    let targets = index(attrs.int_or("n_targets", 1)?, "n_targets")?;
    let mut forest = read_nodes(attrs, "target", targets)?;
    forest.total = match attrs.text_or("aggregate_function", "SUM")? {
        "AVERAGE" => Total::Average,
        "SUM" => Total::Sum,
        "MIN" => Total::Least,
        "MAX" => Total::Most,
        other => return Err(Error::unsupported(format!("aggregate_function {other:?}"))),
    };
    finish(attrs, 2, forest, Post::read(attrs)?, None)
}

fn read_classifier(attrs: &Attrs) -> Result<Arc<dyn Op>> {
    let labels = labels(attrs, "int64s")?;
    let forest = read_nodes(attrs, "class", labels.len())?;
    finish(attrs, 1, forest, Post::read(attrs)?, Some(labels))
}

/// The form from version 5 on: branches and leaves apart, by their places.
fn read_places(attrs: &Attrs) -> Result<Arc<dyn Op>> {
    let need = |name: &str| -> Result<&Tensor> {
        attrs.opt_tensor(name)?.ok_or_else(|| Error::invalid(format!("TreeEnsemble has no {name}")))
    };
    let ints = |name: &str| attrs.ints_or(name, &[]);
    let (features, splits) = (ints("nodes_featureids")?, wide(need("nodes_splits")?)?);
    let modes = need("nodes_modes")?.clone().aligned().to_ints()?;
    let (yes, no) = (ints("nodes_truenodeids")?, ints("nodes_falsenodeids")?);
    let (yes_leaf, no_leaf) = (ints("nodes_trueleafs")?, ints("nodes_falseleafs")?);
    let missing = ints("nodes_missing_value_tracks_true")?;
    let n = features.len();
    lengths("nodes", &[splits.len(), modes.len(), yes.len(), no.len(), yes_leaf.len(), no_leaf.len()], n)?;
    let (targets, weights) = (ints("leaf_targetids")?, wide(need("leaf_weights")?)?);
    lengths("leaves", &[targets.len()], weights.len())?;
    let members = attrs.opt_tensor("membership_values")?.map(wide).transpose()?.unwrap_or_default();
    let mut sets = members.split(|v| v.is_nan());
    let way = |leaf: i64, at: i64| -> Result<Next> {
        let (at, most) = (index(at, "node")?, if leaf != 0 { weights.len() } else { n });
        match leaf != 0 {
            _ if at >= most => Err(Error::invalid(format!("a branch leads to place {at} of {most}"))),
            true => Ok(Next::Leaf(at)),
            false => Ok(Next::Branch(at)),
        }
    };
    let names = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"];
    let mut branches = Vec::with_capacity(n);
    for i in 0..n {
        let test = match modes[i] {
            6 => Test::Among(sets.next().unwrap_or_default().to_vec()),
            mode => {
                let name = usize::try_from(mode).ok().and_then(|m| names.get(m));
                let unknown = || Error::invalid(format!("a node of mode {mode}"));
                Test::named(name.ok_or_else(unknown)?, splits[i])?
            }
        };
        branches.push(Branch {
            feature: index(features[i], "feature")?,
            test,
            missing: missing.get(i) == Some(&1),
            ways: [way(yes_leaf[i], yes[i])?, way(no_leaf[i], no[i])?],
        });
    }
    let count = index(attrs.int_or("n_targets", 1)?, "n_targets")?;
    let mut leaves = Vec::with_capacity(weights.len());
    for (&target, &weight) in targets.iter().zip(&weights) {
        match index(target, "target")? {
            target if target < count => leaves.push(vec![(target, weight)]),
            target => return Err(Error::invalid(format!("a leaf speaks of target {target} of {count}"))),
        }
    }
    let roots = ints("tree_roots")?;
    let forest = Forest {
        roots: roots.into_iter().map(|root| way(0, root)).collect::<Result<_>>()?,
        branches,
        leaves,
        targets: count,
        total: match attrs.int_or("aggregate_function", 1)? {
            0 => Total::Average,
            1 => Total::Sum,
            2 => Total::Least,
            3 => Total::Most,
            other => return Err(Error::invalid(format!("aggregate_function {other}"))),
        },
        base: Vec::new(),
    };
    finish(attrs, 0, forest, Post::numbered(attrs.int_or("post_transform", 0)?)?, None)
}

/// Most targets, so that a file's number alone takes no memory.
const MAX_TARGETS: usize = 1 << 20;

fn finish(
    attrs: &Attrs,
    line: usize,
    mut forest: Forest,
    post: Post,
    labels: Option<Tensor>,
) -> Result<Arc<dyn Op>> {
    let targets = forest.targets;
    let mut spoken = forest.leaves.iter().flatten();
    let only = spoken.clone().next().map(|leaf| leaf.0).filter(|&first| spoken.all(|leaf| leaf.0 == first));
    let mut one_sided = None;
    if only.is_some() && labels.is_some() && targets == 2 {
        one_sided = Some(forest.leaves.iter().flatten().all(|leaf| leaf.1 >= 0.0));
        if forest.base.len() > 1 {
            return Err(Error::unsupported("base values of two classes of which leaves speak of one"));
        }
        forest.base = forest.base.first().map_or(Vec::new(), |&b| vec![b; 2]);
    }
    let bases = forest.base.len();
    if targets == 0 || targets > MAX_TARGETS || (bases > 0 && bases != targets) {
        return Err(Error::invalid(format!("{targets} targets and {bases} base values")));
    }
    Ok(Arc::new(Trees { line, attrs: attrs.clone(), forest, post, labels, one_sided }))
}

impl Trees {
    /// The class of an example and its scores, of two classes when all leaves speak of one of them: its number is weighed
    /// against one half, or against 0 when there are numbers below 0. As onnxruntime does it.
    fn of_two(&self, scores: &mut [f64], spoken: &[bool], positive: bool) -> usize {
        let at = spoken.iter().position(|&s| s).unwrap_or(0);
        let score = scores[at];
        let other = match (positive, self.post) {
            (true, _) => 1.0 - score,
            (false, Post::Logistic) => {
                (scores[0], scores[1]) = (logistic(-score), logistic(score));
                return usize::from(score > 0.0);
            }
            (false, _) => -score,
        };
        (scores[0], scores[1]) = (other, score);
        usize::from(score > if positive { 0.5 } else { 0.0 })
    }
}

fn texts(all: &[&'static str]) -> Attr {
    Attr::Texts(all.iter().map(|s| (*s).into()).collect())
}

/// Two trees with a branch each, on features 0 and 2.
fn stumps() -> Attrs {
    Attrs::new()
        .ints("nodes_treeids", &[0, 0, 0, 1, 1, 1])
        .ints("nodes_nodeids", &[0, 1, 2, 0, 1, 2])
        .ints("nodes_truenodeids", &[1, 0, 0, 2, 0, 0])
        .ints("nodes_falsenodeids", &[2, 0, 0, 1, 0, 0])
        .ints("nodes_featureids", &[0, 0, 0, 2, 0, 0])
        .ints("nodes_missing_value_tracks_true", &[1, 0, 0, 0, 0, 0])
        .with("nodes_values", Attr::Floats(vec![0.1, 0.0, 0.0, -0.2, 0.0, 0.0]))
        .with("nodes_modes", texts(&["BRANCH_LEQ", "LEAF", "LEAF", "BRANCH_GT", "LEAF", "LEAF"]))
}

fn leaves(attrs: Attrs, stem: &str, targets: &[i64], weights: &[f32]) -> Attrs {
    attrs
        .ints(&format!("{stem}_treeids"), &[0, 0, 1, 1])
        .ints(&format!("{stem}_nodeids"), &[1, 2, 1, 2])
        .ints(&format!("{stem}_ids"), targets)
        .with(&format!("{stem}_weights"), Attr::Floats(weights.to_vec()))
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "TreeEnsemble",
        domain: "ai.onnx.ml",
        since: 5,
        read: |r| read_places(r.attrs),
        samples: || {
            let attrs = Attrs::new()
                .ints("tree_roots", &[0])
                .int("n_targets", 2)
                .ints("nodes_featureids", &[0, 2])
                .ints("nodes_trueleafs", &[0, 1])
                .ints("nodes_falseleafs", &[1, 1])
                .ints("nodes_truenodeids", &[1, 0])
                .ints("nodes_falsenodeids", &[2, 1])
                .ints("leaf_targetids", &[0, 1, 0])
                .with("nodes_modes", Attr::Tensor(Tensor::vector(&[0u8, 6])))
                .with("nodes_splits", Attr::Tensor(Tensor::vector(&[0.1f32, 0.0])))
                .with("membership_values", Attr::Tensor(Tensor::vector(&[1f32, 2.0, f32::NAN])))
                .with("leaf_weights", Attr::Tensor(Tensor::vector(&[0.5f32, 1.5, -2.0])));
            vec![Sample::read(&DEFS[0], attrs, vec![ramp(&[6, 3])])]
        },
    },
    OpDef {
        name: "TreeEnsembleClassifier",
        domain: "ai.onnx.ml",
        since: 1,
        read: |r| read_classifier(r.attrs),
        samples: || {
            let many = leaves(stumps(), "class", &[0, 1, 2, 1], &[0.5, 0.25, 1.0, -1.0]);
            let many = many.ints("classlabels_int64s", &[4, 5, 6]).text("post_transform", "SOFTMAX");
            let one = |weights| leaves(stumps(), "class", &[1; 4], weights);
            let two = texts(&["no", "yes"]);
            let sure = one(&[0.3, 0.1, 0.4, 0.2]).with("classlabels_strings", two);
            let mixed = one(&[0.3, -0.1, 0.4, -0.2]).ints("classlabels_int64s", &[0, 1]);
            let mixed = mixed.with("base_values", Attr::Floats(vec![0.1])).text("post_transform", "LOGISTIC");
            let of = |attrs| Sample::read(&DEFS[1], attrs, vec![ramp(&[6, 3])]).outputs(2);
            vec![of(many), of(sure), of(mixed)]
        },
    },
    OpDef {
        name: "TreeEnsembleRegressor",
        domain: "ai.onnx.ml",
        since: 1,
        read: |r| read_regressor(r.attrs),
        samples: || {
            let of = |total: &str, targets: &[i64]| {
                let attrs = leaves(stumps(), "target", targets, &[0.5, 0.25, 1.0, -1.0]);
                let attrs = attrs.text("aggregate_function", total).int("n_targets", 2);
                Sample::read(&DEFS[2], attrs, vec![ramp(&[6, 3])])
            };
            vec![of("SUM", &[0, 1, 0, 1]), of("AVERAGE", &[0; 4]), of("MIN", &[1; 4]), of("MAX", &[0; 4])]
        },
    },
];

impl Op for Trees {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.line]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let dtype = if self.line == 0 { inputs.dtype(0) } else { Some(DType::F32) };
        Ok(infer(inputs, dtype, self.forest.targets, self.labels.as_ref()))
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = if self.line == 0 { inputs.need(0)?.dtype() } else { DType::F32 };
        let (x, n, width) = rows(inputs.need(0)?)?;
        let targets = self.forest.targets;
        let mut places = Vec::with_capacity(n);
        let mut spoken = vec![false; targets];
        let out = Tensor::build(&[n, targets], |out: &mut [f64]| {
            for (i, scores) in out.chunks_exact_mut(targets).enumerate() {
                self.forest.scores(&x[i * width..][..width], scores, &mut spoken)?;
                let place = match self.one_sided {
                    Some(positive) => self.of_two(scores, &spoken, positive),
                    None => {
                        let place = best(scores);
                        self.post.apply(scores);
                        place
                    }
                };
                places.push(place as i64);
            }
            Ok(())
        })?;
        let out = cast(out, dtype, true)?;
        Ok(match &self.labels {
            None => vec![out],
            Some(labels) => vec![gather(labels.clone(), &Tensor::vector(&places), 0)?, out],
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Reader;
    use crate::ops;

    fn regressor(attrs: &Attrs) -> Result<Arc<dyn Op>> {
        ops::read("ai.onnx.ml", "TreeEnsembleRegressor", &Reader { attrs, version: 3, inputs: 1, outputs: 1 })
    }

    #[test]
    fn broken_trees_are_refused() {
        let good = || leaves(stumps(), "target", &[0; 4], &[1.0; 4]);
        assert!(regressor(&good()).is_ok());
        let broken = [
            good().ints("nodes_truenodeids", &[1, 0, 0, 9, 0, 0]),
            good().ints("nodes_nodeids", &[0, 1, 1, 0, 1, 2]),
            good().ints("nodes_featureids", &[-1, 0, 0, 2, 0, 0]),
            good().ints("nodes_featureids", &[0]),
            good().ints("target_ids", &[0, 0, 7, 0]),
            good().int("n_targets", i64::MAX),
            good().int("n_targets", 0),
        ];
        for (i, attrs) in broken.iter().enumerate() {
            assert!(regressor(attrs).is_err(), "{i}");
        }
    }

    #[test]
    fn circles_are_found_when_they_are_walked() {
        let attrs =
            leaves(stumps().ints("nodes_truenodeids", &[0, 0, 0, 2, 0, 0]), "target", &[0; 4], &[1.0; 4]);
        let op = regressor(&attrs).unwrap();
        let cpu = kernel::Cpu::with_isa(kernel::Isa::best(), 1).unwrap();
        let x = Tensor::new(&[1, 3], &[0f32, 0.0, 0.0]).unwrap();
        let error = op.run(&RunCx::new(&cpu, 1), Inputs::new(vec![Some(x.into())])).unwrap_err();
        assert!(error.to_string().contains("circles"), "{error}");
    }
}
