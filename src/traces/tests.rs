use super::*;

#[test]
fn a_malformed_traceparent_is_no_parent() {
    let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let parent = remote_parent(valid).unwrap();
    assert!(parent.span().span_context().is_sampled());
    let unsampled = remote_parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
    assert!(!unsampled.unwrap().span().span_context().is_sampled());
    for malformed in [
        "",
        "00",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        &"0".repeat(100_000),
    ] {
        assert!(remote_parent(malformed).is_none(), "{malformed:.60}");
    }
}

#[tokio::test]
async fn nothing_is_recorded_while_traces_are_off() {
    let traces = Traces::off();
    let sampled = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let request = traces.request("GET", sampled);
    assert!(!request.is_recorded());
    let inner = request.run(async { (Span::current(), Span::child(Kind::Internal, || "step")) });
    let (current, child) = inner.await;
    assert!(current.is_none() && !child.is_recorded());
}
