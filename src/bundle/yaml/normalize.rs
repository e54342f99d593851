//! Normalizes a document before it is decoded, as OPA does (`normalize` in its
//! `internal/yaml/yaml.go`), so that texts for go-yaml 2 keep their meaning.

use std::{borrow::Cow, collections::HashMap};

use super::{
    YamlError, binary,
    key::Key,
    resolve,
    scalar::Tag,
    tree::{Kind, NodeId, Tree},
};

/// Turns plain timestamps into strings, joins the merge keys of a mapping, and keeps the last of
/// several keys with the same name in JSON.
///
/// The order matters: a timestamp is not yet a string when it is compared as a key, unless an alias
/// led to it before.
pub(super) fn normalize(tree: &mut Tree) -> Result<(), YamlError> {
    let mut is_visited = vec![false; tree.len()];
    let mut open: Vec<NodeId> = tree.root.into_iter().collect();
    while let Some(id) = open.pop() {
        // A sequence that was added here is beyond `is_visited`, and has one parent.
        if is_visited
            .get_mut(id as usize)
            .is_some_and(|is_visited| std::mem::replace(is_visited, true))
        {
            continue;
        }
        match tree.node(id).kind {
            Kind::Scalar => {
                let node = tree.node_mut(id);
                if node.tag == Tag::Timestamp && node.is_plain {
                    node.tag = Tag::Str;
                }
            }
            Kind::Mapping => {
                collapse_merge_keys(tree, id)?;
                drop_duplicate_keys(tree, id);
            }
            Kind::Alias(target) => open.push(target),
            Kind::Sequence => {}
        }
        open.extend(tree.node(id).children.iter().rev());
    }
    Ok(())
}

/// Gives the first merge key of a mapping the values of all its merge keys, if they are two or
/// more.
fn collapse_merge_keys(tree: &mut Tree, mapping: NodeId) -> Result<(), YamlError> {
    let is_merge = |tree: &Tree, key: NodeId| {
        let key = tree.node(key);
        key.kind == Kind::Scalar && key.tag == Tag::Merge
    };
    let children = &tree.node(mapping).children;
    let mut merged = Vec::new();
    let mut first = None;
    for (position, pair) in children.as_chunks::<2>().0.iter().enumerate() {
        let [key, value] = *pair;
        if is_merge(tree, key) {
            first.get_or_insert((position, value));
            match tree.node(value).kind {
                Kind::Sequence => merged.extend_from_slice(&tree.node(value).children),
                _ => merged.push(value),
            }
        }
    }
    let Some((first, value)) = first.filter(|_| merged.len() >= 2) else {
        return Ok(());
    };
    let sequence = tree.add_sequence(value, merged)?;
    let mut kept = Vec::new();
    for (position, pair) in tree
        .node(mapping)
        .children
        .as_chunks::<2>()
        .0
        .iter()
        .enumerate()
    {
        if position == first {
            kept.extend([pair[0], sequence]);
        } else if !is_merge(tree, pair[0]) {
            kept.extend(pair);
        }
    }
    tree.node_mut(mapping).children = kept;
    Ok(())
}

/// Keeps the first key node of each name, with the last value.
fn drop_duplicate_keys(tree: &mut Tree, mapping: NodeId) {
    let kept = without_duplicates(tree, &tree.node(mapping).children);
    if kept.len() < tree.node(mapping).children.len() {
        tree.node_mut(mapping).children = kept;
    }
}

fn without_duplicates(tree: &Tree, children: &[NodeId]) -> Vec<NodeId> {
    let mut kept: Vec<NodeId> = Vec::with_capacity(children.len());
    let mut value_by_name: HashMap<Cow<'_, [u8]>, usize> = HashMap::new();
    for [key, value] in children.as_chunks::<2>().0 {
        let known = name(tree, *key).and_then(|name| match value_by_name.get(&name) {
            Some(known) => Some(*known),
            None => {
                value_by_name.insert(name, kept.len() + 1);
                None
            }
        });
        match known {
            Some(known) => kept[known] = *value,
            None => kept.extend([key, value]),
        }
    }
    kept
}

/// The name of a key in JSON, if it is a scalar that has one.
fn name(tree: &Tree, key: NodeId) -> Option<Cow<'_, [u8]>> {
    let node = tree.node(key);
    let text = tree.text(key);
    match (node.kind, node.tag) {
        (Kind::Scalar, Tag::Binary) => binary::decode(text).map(Cow::Owned),
        (Kind::Scalar, tag) if tag != Tag::Merge => {
            Key::new(&resolve::resolve(tag, text).ok()?, text).to_name()
        }
        _ => None,
    }
}
