use crate::bundle::yaml::to_json;

/// The thread of a test has a stack of 2 MiB.
#[test]
fn depth_costs_no_stack_and_has_the_limit_of_go_yaml() {
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", "")] {
        let nested = |depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        assert!(to_json(nested(10_000).as_bytes()).is_ok(), "{open}");
        let error = to_json(nested(10_001).as_bytes()).unwrap_err();
        assert!(
            error.reason().contains("deeper than 10000"),
            "{open}: {error}"
        );
        assert!(
            to_json(open.repeat(1_000_000).as_bytes()).is_err(),
            "{open}"
        );
    }
    let both = format!(
        "{}{}1{}",
        "- ".repeat(6_000),
        "[".repeat(6_000),
        "]".repeat(6_000)
    );
    assert!(
        to_json(both.as_bytes())
            .unwrap_err()
            .reason()
            .contains("deeper than 10000")
    );
}

#[test]
fn aliases_are_bounded_by_their_share_and_by_the_size_of_the_output() {
    let laughs: String = (1..10)
        .map(|level| {
            format!(
                "l{level}: &l{level} [{}]\n",
                vec![format!("*l{}", level - 1); 9].join(",")
            )
        })
        .collect();
    let error = to_json(format!("l0: &l0 lol\n{laughs}").as_bytes()).unwrap_err();
    assert!(
        error.reason().contains("make up too much of the text"),
        "{error}"
    );

    let long = format!(
        "a: &a {}\nb: [{}]\n",
        "x".repeat(100_000),
        "*a,".repeat(900)
    );
    let error = to_json(long.as_bytes()).unwrap_err();
    assert!(
        error.reason().contains("make the text too large"),
        "{error}"
    );

    let shared = format!(
        "a: &a [{}]\nb: [{}]\n",
        "1,".repeat(1_000),
        "*a,".repeat(50)
    );
    assert_eq!(
        to_json(shared.as_bytes()).unwrap().len(),
        "{\"a\":,\"b\":[]}".len() + 51 * 2_001 + 49
    );
}

/// Measured: go-yaml 3.0.5 accepts the first and refuses the second.
#[test]
fn the_allowed_share_of_aliases_is_that_of_go_yaml() {
    let text = |own: usize, aliased: usize| {
        format!(
            "a: &a [{}]\nb: [{}]\n",
            "1,".repeat(own),
            "*a,".repeat(aliased)
        )
    };
    assert!(to_json(text(1_000, 110).as_bytes()).is_ok());
    assert!(to_json(text(1_000, 111).as_bytes()).is_err());
}

#[test]
fn long_texts_of_many_shapes_are_read_to_their_end() {
    let texts = [
        "a, ".repeat(50_000),
        format!("[{}]", "a: b, ".repeat(25_000)),
        (0..20_000).map(|n| format!("k{n}: {n}\n")).collect(),
        "# c\n".repeat(50_000),
        " ".repeat(250_000),
        format!("a: |\n{}", "  x\n\n".repeat(25_000)),
        format!("'{}'", "a\n\n".repeat(25_000)),
        "---\na\n".repeat(25_000),
        format!("- {}", "[[[],".repeat(100) + &"]".repeat(100)).repeat(10),
    ];
    for text in texts {
        let _ = to_json(text.as_bytes());
    }
}
