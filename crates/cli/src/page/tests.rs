use super::*;
use lessen::shrink::{Change, Lose, Point, Request, shrink};
use lessen::{Cpu, Model, data};

fn receipt(with_data: bool) -> Receipt {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits");
    let model = Model::open(folder.join("digits.onnx")).unwrap();
    let data_path = folder.join("test.npz");
    let data = data::open(&data_path, &data::Options::default()).unwrap();
    let request = Request {
        data: with_data.then_some(&*data),
        data_path: with_data.then_some(&data_path),
        lose: with_data.then_some(Lose::Percent(1.0)),
        ..Request::default()
    };
    shrink(&model, &request, &Cpu::new(1).unwrap(), &|_| ()).unwrap().1
}

/// Every element that is opened is closed, in order; those without content aside.
fn balanced(page: &str) {
    let mut open: Vec<String> = Vec::new();
    for tag in page.split('<').skip(1).map(|t| t.split('>').next().unwrap()) {
        let name: String = tag.chars().take_while(|c| !c.is_whitespace()).collect();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "after {open:?}");
        } else if !tag.ends_with('/') && !["!doctype", "meta", "img"].contains(&name.as_str()) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_page_needs_nothing_else() {
    let receipt = receipt(true);
    let page = page(&receipt);
    balanced(&page);
    for outside in ["http", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(
        page.matches("data:image/png;base64,").count() == receipt.verification.as_ref().unwrap().worst.len()
    );
    for svg in page.split("<svg ").skip(1) {
        assert!(svg.starts_with("width=\"100%\" height=\""), "{}", &svg[..60]);
    }
    for words in
        ["times smaller", "measured", "exact", "estimated", "SHA-256", "What size costs", "class=\"chosen\""]
    {
        assert!(page.contains(words), "{words}");
    }
    assert!(!json(&receipt).contains("base64"));
}

#[test]
fn what_comes_from_files_cannot_become_markup() {
    let evil = "<script>alert('x')</script>\"><img src=x onerror=y>&";
    let mut receipt = receipt(true);
    receipt.original = format!("/models/{evil}.onnx");
    receipt.plan.steps[0].node = evil.into();
    receipt.given_back.push(evil.into());
    receipt.missed.push(evil.into());
    receipt.caveats.push(evil.into());
    receipt.met = false;
    let quality = receipt.quality.clone();
    let (bytes, smaller) = (Number::exact(5e4, "bytes"), Number::exact(2.0, "x"));
    receipt.frontier.push(Point { name: evil.into(), bytes, smaller, quality, faster: None });
    receipt.changes.push(Change {
        pass: evil.into(),
        error: 0.1,
        measure: "squared error",
        elements: (2, 1),
    });
    receipt.weighed.after[0].name = evil.into();
    receipt.data.as_mut().unwrap().data = evil.into();
    receipt.quality.as_mut().unwrap().metric = evil.into();
    receipt.provenance.original[0].name = evil.into();
    let found = receipt.verification.as_mut().unwrap();
    found.classes[0].name = Some(evil.into());
    let worst = &mut found.worst[0];
    (worst.id, worst.text) = (evil.into(), vec![evil.into()]);
    (worst.target, worst.before, worst.after) = (Some(evil.into()), Some(evil.into()), Some(evil.into()));
    found.worst[1].image = Some("javascript:alert(1)".into());
    let page = page(&receipt);
    balanced(&page);
    assert!(!page.contains("<script") && !page.contains("<img src"));
    assert!(!page.contains("src=\"javascript"));
    assert!(page.matches("&lt;script&gt;").count() >= 15, "{}", page.matches("&lt;script&gt;").count());
}

#[test]
fn without_data_the_page_says_so() {
    let page = page(&receipt(false));
    balanced(&page);
    assert!(page.contains("There were no data"));
    assert!(page.contains("Nothing is proven") && page.contains("Where the bytes are"));
    for absent in ["What changed in the answers", "What size costs", "changed most", "for each class"] {
        assert!(!page.contains(absent), "{absent}");
    }
}

#[test]
fn a_bound_that_is_not_proven_says_how_many_more_examples_it_takes() {
    let mut receipt = receipt(true);
    let proof = receipt.proof.as_mut().unwrap();
    (proof.holds, proof.at_most, proof.bound) = (false, 0.02, 0.01);
    proof.examples_more = Some(500);
    proof.probability = Some(0.931);
    let page = page(&receipt);
    for words in [
        "Not proven that it loses at most 1.00 points",
        "About 500 more examples",
        "up to 2.00 points",
        "93.1 %",
    ] {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn numbers_for_people() {
    let n = Number::within(-0.25, -0.000_001, 1.0, "points");
    assert_eq!(shown(&n), "−0.25 points<span class=\"ci\">0.00 to 1.00</span>");
    assert_eq!(plain(&Number::exact(1500.0, "bytes")), "1.50 kB");
    assert_eq!(plain(&Number::measured(0.82345, "")), "0.8235");
}
